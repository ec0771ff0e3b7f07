"""Tree of thought (Yao et al., arXiv 2305.10601): GSM8K by plans that branch, and searches of the Game of 24."""

from workloads.tree_of_thought.workload import TreeOfThought

__all__ = ["TreeOfThought"]
