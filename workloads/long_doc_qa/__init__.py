"""Questions about long documents, whose parts are read in parallel (SGLang's multi_document_qa)."""

from workloads.long_doc_qa.workload import LongDocQA

__all__ = ["LongDocQA"]
