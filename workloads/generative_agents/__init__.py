"""Agents of a small town (Park et al., arXiv 2304.03442): the functions that make most of their calls."""

from workloads.generative_agents.workload import GenerativeAgents

__all__ = ["GenerativeAgents"]
