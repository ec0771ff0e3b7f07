"""An LLM as a judge, by branch, solve, merge (Saha et al., arXiv 2310.15123)."""

from workloads.judge.workload import Judge

__all__ = ["Judge"]
