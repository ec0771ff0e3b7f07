"""Recorded traffic, replayed by its own times: Mooncake's, LMCache's agents', Azure's, or a file of yours."""

from workloads.trace.workload import Trace

__all__ = ["Trace"]
