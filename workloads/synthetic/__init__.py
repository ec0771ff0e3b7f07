"""Traffic of a stated law: arrivals, popularity of prefixes, conversations, agent loops, lengths."""

from workloads.synthetic.workload import Synthetic

__all__ = ["Synthetic"]
