"""Finding one line among many, whose parts are read in parallel (SGLang's line_retrieval)."""

from workloads.line_retrieval.workload import LineRetrieval

__all__ = ["LineRetrieval"]
