"""ReAct (Yao et al., arXiv 2210.03629) on HotpotQA: recorded chains replayed, or a live agent."""

from workloads.react.workload import React

__all__ = ["React"]
