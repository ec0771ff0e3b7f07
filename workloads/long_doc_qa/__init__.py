"""Questions about long documents whose parts are encoded side by side and joined by their KV."""

from workloads.long_doc_qa.workload import LongDocQA

__all__ = ["LongDocQA"]
