"""The calls of Generative Agents (Park et al., arXiv 2304.03442)."""

from workloads.generative_agents.workload import GenerativeAgents

__all__ = ["GenerativeAgents"]
