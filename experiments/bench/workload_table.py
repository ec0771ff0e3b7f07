"""The README's table of workloads: `python -m experiments.bench.workload_table RESULTS.json README.md` writes it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN = "<!-- What follows is written by experiments.bench.workload_table -->"
END = "<!-- Its end -->"
COLUMNS = (
    "workload",
    "what it is",
    "data",
    "programs / requests / prompt tokens",
    "hit rate (best possible)",
    "programs/s over no cache",
    "latency of one at a time, no cache over lru",
    "overrides",
)
WHAT: Mapping[str, tuple[str, str]] = {  # by the rows' titles
    "mmlu": ("few-shot questions, subject by subject", "MMLU"),
    "hellaswag": ("endings scored behind 20 examples", "HellaSwag"),
    "gsm8k": ("word problems behind 5 examples", "GSM8K"),
    "multi_chain": ("five chains of thought, merged", "GSM8K"),
    "react": ("recorded chains of thoughts, actions, observations", "ReAct's traces of HotpotQA"),
    "react, live": ("an agent's loop with a search tool", "HotpotQA"),
    "tree_of_thought": ("plans that branch, are carried out, judged and voted on", "GSM8K"),
    "tree_of_thought, game24": ("breadth-first search of the Game of 24", "24"),
    "json_decode": ("five fields of a page, a regex each", "Wikipedia"),
    "json_decode, character": ("one regex for a record, from a name", "names"),
    "json_decode, city": ("one regex for a record, from a page", "Wikipedia"),
    "json_decode, schema": ("an instance of a JSON schema", "MaskBench"),
    "json_decode, functions": ("a call of a function", "BFCL"),
    "chat": ("four turns, short answers", "made, as in the paper"),
    "chat, long": ("turns with long answers", "made, as in the paper"),
    "chat, mt_bench": ("two turns", "MT-Bench"),
    "chat, agent": ("sessions of a coding agent", "LMCache's traces"),
    "skeleton": ("tips first, then each written out", "tip_suggestion"),
    "judge": ("branch, solve, merge", "llm_judge"),
    "generative_agents": ("many short dependent calls", "a generated town"),
    "long_doc_qa": ("segments encoded apart, joined by their KV", "Wikipedia"),
    "line_retrieval": ("one line of a register, joined by its KV", "made"),
    "dspy_rag": ("a compiled DSPy program with retrieval; recorded calls", "HotpotQA, DSPy"),
    "llava": ("questions about pictures", "LLaVA-Bench"),
    "synthetic": ("traffic of a stated law", "made"),
    "trace": ("recorded traffic, by ids of blocks", "Mooncake"),
    "trace, agent": ("recorded traffic of agents", "LMCache's traces"),
    "trace, azure": ("recorded traffic, lengths alone", "Azure"),
    "mmlu, Mixtral": ("the same on a mixture of experts", "MMLU"),
    "unique prompts": ("nothing shared: what the cache costs", "made"),
}


def rows(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for cell in cells:
        what, data = WHAT[cell["title"]]
        runs = cell["throughput"]["lru"]
        hit, best = (sum(one[name] for one in runs) / len(runs) for name in ("hit_rate", "infinite"))
        size = f"{cell['programs']} / {runs[0]['calls']} / {runs[0]['prompt_tokens']:,}"
        ratios = cell["ratios"]
        speed = _ratio(ratios["none"].get("programs_per_s"))
        latency = _ratio(ratios["none"].get("latency_s"))
        command = " ".join(one for one in cell["overrides"] if one != "model=llama-110m")
        parts = (cell["title"], what, data, size, f"{hit:.1%} ({best:.1%})", speed, latency, f"`{command}`")
        found.append(f"| {' | '.join(parts)} |")
    return found


def _ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None or ratio["value"] is None:
        return "–"
    if ratio["low"] is None:
        return f"{ratio['value']:.2f}x"
    return f"{ratio['value']:.2f}x [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def written(document: str, cells: Sequence[Mapping[str, Any]]) -> str:
    """The document with the table between its marks. Raises ValueError when it has none."""
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document has no {BEGIN} ... {END}")
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}", *rows(cells)]
    return "\n".join([head + BEGIN, "", *lines, "", END]) + tail


if __name__ == "__main__":
    results, page = map(Path, sys.argv[1:3])
    page.write_text(written(page.read_text(), json.loads(results.read_text())["workloads"]))
