"""The kit that policies are tested with: random traffic on a real radix tree, checked against what policies promise.

    python -m engine.conformance path/to/mine.py:MyPolicy

From a test: `check_eviction(MyPolicy)`, `check_scheduling(lambda: MyPolicy(alpha=2))`.
"""

from engine.conformance.eviction import check_eviction
from engine.conformance.scheduling import check_scheduling

__all__ = ["check_eviction", "check_scheduling"]
