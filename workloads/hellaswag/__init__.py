"""HellaSwag (Zellers et al., 2019, arXiv 1905.07830): which of four endings follows, after twenty examples."""

from workloads.hellaswag.workload import HellaSwag

__all__ = ["HellaSwag"]
