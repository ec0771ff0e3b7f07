"""GSM8K: grade school word problems, few-shot (Cobbe et al., arXiv 2110.14168)."""

from workloads.gsm8k.workload import GSM8K

__all__ = ["GSM8K"]
