"""Skeleton of thought (Ning et al., arXiv 2307.15337): short tips first, then each written out, all at a time."""

from workloads.skeleton.workload import Skeleton

__all__ = ["Skeleton"]
