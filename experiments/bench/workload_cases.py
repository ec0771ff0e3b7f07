"""The rows of the workload benchmark: each workload as small as its shape allows, on a model of its kind."""

from __future__ import annotations

from experiments.bench.workload_runs import Case

SMALL = "model=llama-110m"


def _case(title: str, *overrides: str, programs: int, alone: int = 2, parallel: int = 16, model: str = SMALL) -> Case:
    name = title.split(",")[0]
    return Case(
        title, (f"workload={name}", model, *(f"workload.{one}" for one in overrides)), programs, alone, parallel
    )


CASES = (
    _case("mmlu", "subjects=3", "questions_per_subject=8", programs=24, alone=6),
    _case("hellaswag", "n_questions=12", programs=12, alone=4),
    _case("gsm8k", "n_questions=12", "max_tokens=48", programs=12, alone=4),
    _case("multi_chain", "n_questions=4", "max_tokens=48", programs=4, alone=1),
    _case("react", "n_questions=8", programs=8),
    _case("react, live", "mode=live", "n_questions=8", programs=8),
    _case("tree_of_thought", "n_questions=2", "n_branches=2", "max_tokens=48", programs=2, alone=1),
    _case("tree_of_thought, game24", "task=game24", "n_questions=1", "keep=2", "max_tokens=160", programs=1, alone=1),
    _case("json_decode", "n_items=6", "page_tokens=800", programs=6),
    _case("json_decode, character", "kind=character", "n_items=12", "max_tokens=160", programs=12),
    _case("json_decode, city", "kind=city", "n_items=6", "page_tokens=800", "max_tokens=160", programs=6),
    _case("json_decode, schema", "kind=schema", "n_items=8", "max_tokens=96", programs=8),
    _case("json_decode, functions", "kind=functions", "n_items=8", "max_tokens=64", programs=8),
    _case("chat", "n_conversations=6", "max_context_tokens=3500", programs=6),
    _case("chat, long", "kind=long", "n_conversations=2", "n_turns=3", "max_context_tokens=4096", programs=2, alone=1),
    _case("chat, mt_bench", "kind=mt_bench", "n_conversations=8", "max_tokens=64", programs=8),
    _case("chat, agent", "kind=agent", "n_conversations=4", "max_tokens=64", "max_context_tokens=3500", programs=4),
    _case("skeleton", "n_topics=6", "detail_tokens=48", programs=6),
    _case("judge", "n_articles=6", "max_tokens=48", programs=6, alone=3),
    _case("generative_agents", "n_agents=4", "n_events=60", programs=4, alone=1),
    _case("long_doc_qa", "n_documents=1", "n_segments=6", "segment_tokens=300", "n_questions=6", programs=6, alone=4),
    _case("line_retrieval", "n_registers=1", "n_lines=80", "n_questions=4", programs=4, alone=4),
    _case("dspy_rag", "n_questions=8", "max_tokens=96", "max_context_tokens=4000", programs=8, alone=4),
    _case("llava", "n_questions=10", "max_tokens=32", programs=10, alone=5, model="model=llava-small"),
    _case("synthetic", "n_programs=12", programs=12),
    _case("trace", "limit=300", "block_tokens=8", "max_output_tokens=8", programs=300),
    _case("trace, agent", "source=agent", "limit=24", "max_output_tokens=48", "max_context_tokens=4096", programs=24),
    _case("trace, azure", "source=azure", "limit=60", "max_output_tokens=16", programs=60),
    _case("mmlu, Mixtral", "subjects=1", "questions_per_subject=12", programs=12, alone=4, model="model=mixtral-small"),
)
UNIQUE = Case(
    "unique prompts",
    ("workload=synthetic_unique", SMALL, "workload.n_programs=24"),
    programs=24,
    alone=0,
)
"""Nothing is shared."""
