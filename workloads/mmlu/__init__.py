"""MMLU (Hendrycks et al., 2021, arXiv 2009.03300): multiple-choice questions after five examples each."""

from workloads.mmlu.workload import MMLU

__all__ = ["MMLU"]
