"""Multi-chain reasoning: several chains of thought for one question, merged into an answer."""

from workloads.multi_chain.workload import MultiChain

__all__ = ["MultiChain"]
