"""What all workloads are put through: small settings on the built-in samples."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"n_conversations": 2, "n_turns": 2},
        {"n_conversations": 3, "kind": "mt_bench", "max_tokens": 12, "system": "Be brief.", "think_s": 0.01},
        {"n_conversations": 2, "kind": "conversations", "max_tokens": 12},
        {"n_conversations": 2, "kind": "agent", "max_tokens": 12},
    ],
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
    "json_decode": [
        {"n_items": 2, "page_tokens": 60},
        {"n_items": 2, "kind": "character"},
        {"n_items": 2, "kind": "city", "page_tokens": 60},
        {"n_items": 3, "kind": "schema", "max_tokens": 40},
        {"n_items": 2, "kind": "functions", "max_tokens": 40},
    ],
    "judge": [{"n_articles": 2, "n_dimensions": 3, "max_tokens": 12}],
    "line_retrieval": [
        {"n_lines": 12, "n_questions": 3},
        {"n_lines": 12, "n_questions": 3, "encoding": "plain"},
    ],
    "long_doc_qa": [
        {"n_documents": 1, "n_segments": 3, "segment_tokens": 100, "n_questions": 3},
        {"n_documents": 2, "n_segments": 2, "segment_tokens": 60, "n_questions": 2, "encoding": "plain"},
    ],
    "llava": [{"n_questions": 4, "max_tokens": 6}],
    "mmlu": [{"subjects": 1, "limit": 4}],
    "multi_chain": [{"n_questions": 2, "n_chains": 3, "max_tokens": 12}],
    "react": [
        {"n_questions": 2},
        {"n_questions": 2, "paper_compat": True},
        {"n_questions": 2, "mode": "live", "tool_seconds": 0.01},
        {"n_questions": 2, "mode": "live", "retriever": "embeddings"},
    ],
    "skeleton": [{"n_topics": 2, "n_tips": 3, "tip_tokens": 6, "detail_tokens": 12}],
    "synthetic": [
        {"n_programs": 5, "n_prefixes": 2, "prefix_tokens": 20, "message_tokens": 9, "think_s": 0, "tool_s": 0},
        {"n_programs": 4, "n_prefixes": 0, "agents": 0, "turns": 1, "arrivals": "none"},
    ],
    "trace": [
        {"limit": 6, "max_output_tokens": 4},
        {"source": "agent", "limit": 6},
        {"source": "agent", "limit": 6, "pace": "sessions", "pause_s": 0},
        {"source": "azure", "limit": 6},
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
