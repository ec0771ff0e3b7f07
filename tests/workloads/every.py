"""What all workloads are put through: small settings on the built-in samples."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, list[dict[str, Any]]] = {
    "dspy_rag": [
        {"n_questions": 3, "n_demos": 4, "n_full_demos": 2},
        {"n_questions": 2, "n_demos": 2, "n_full_demos": 1, "retriever": "embeddings", "retrieval_seconds": 0.01},
        {"n_questions": 4, "kind": "recorded", "order": "by_template"},
    ],
    "generative_agents": [
        {"n_events": 14, "n_agents": 2},
        {"n_events": 8, "n_agents": 2, "paper_compat": True},
    ],
    "gsm8k": [{"n_shots": 2, "n_questions": 4, "max_tokens": 12}],
    "hellaswag": [{"n_shots": 3, "n_questions": 3}],
    "line_retrieval": [
        {"n_lines": 12, "n_questions": 3},
        {"n_lines": 12, "n_questions": 3, "encoding": "plain"},
    ],
    "long_doc_qa": [
        {"n_documents": 1, "n_segments": 3, "segment_tokens": 100, "n_questions": 3},
        {"n_documents": 2, "n_segments": 2, "segment_tokens": 60, "n_questions": 2, "encoding": "plain"},
    ],
    "mmlu": [{"subjects": 1, "limit": 4}],
    "multi_chain": [{"n_questions": 2, "n_chains": 3, "max_tokens": 12}],
    "react": [
        {"n_questions": 2},
        {"n_questions": 2, "paper_compat": True},
        {"n_questions": 2, "mode": "live", "tool_seconds": 0.01},
        {"n_questions": 2, "mode": "live", "retriever": "embeddings"},
    ],
    "tree_of_thought": [
        {"n_questions": 1, "n_branches": 2, "max_tokens": 8},
        {"n_questions": 1, "task": "game24", "search": "bfs", "keep": 2, "max_tokens": 90},
        {"n_questions": 1, "task": "game24", "search": "dfs", "keep": 2, "max_tokens": 90},
    ],
}
"""Settings of each workload, one for each of its kinds. Every name of the registry is here."""
CASES = [(name, settings) for name, several in sorted(SMALL.items()) for settings in several]
IDS = [f"{name}-{i}" for name, several in sorted(SMALL.items()) for i in range(len(several))]
