"""Finding one line of a long register (LongEval's task), the register encoded in parts or as a whole."""

from workloads.line_retrieval.workload import LineRetrieval

__all__ = ["LineRetrieval"]
