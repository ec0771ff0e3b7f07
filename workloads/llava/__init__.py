"""LLaVA-Bench in the wild (Liu et al., Visual Instruction Tuning, NeurIPS 2023): several questions to each picture."""

from workloads.llava.workload import LLaVA

__all__ = ["LLaVA"]
