"""Retrieval-augmented answers by a compiled DSPy program (Khattab et al., arXiv 2310.03714) on HotpotQA."""

from workloads.dspy_rag.workload import DSPyRAG

__all__ = ["DSPyRAG"]
