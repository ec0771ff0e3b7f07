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
    "`python run.py policy=lru model=llama-110m` and",
)
WHAT: Mapping[str, tuple[str, str]] = {
    "mmlu": ("few-shot questions, subject by subject", "MMLU"),
    "hellaswag": ("endings scored behind 20 examples", "HellaSwag"),
    "gsm8k": ("word problems behind 5 examples", "GSM8K"),
    "multi_chain": ("five chains of thought, merged", "GSM8K"),
    "react": ("agents: recorded chains, or a live loop with a search tool", "ReAct, HotpotQA"),
    "tree_of_thought": ("plans that branch; searches of the Game of 24", "GSM8K, 24"),
    "json_decode": ("JSON by regexes, schemas, tools", "Wikipedia, MaskBench, BFCL"),
    "chat": ("conversations: synthetic, recorded, agents'", "MT-Bench, LMCache's traces"),
    "skeleton": ("tips first, then each written out", "tip_suggestion"),
    "judge": ("branch, solve, merge", "llm_judge"),
    "generative_agents": ("many short dependent calls", "a generated town"),
    "long_doc_qa": ("segments encoded apart, joined by their KV", "Wikipedia"),
    "line_retrieval": ("one line of a register, joined by its KV", "made"),
    "dspy_rag": ("a compiled DSPy program with retrieval; recorded calls", "HotpotQA, DSPy"),
    "llava": ("questions about pictures", "LLaVA-Bench"),
    "synthetic": ("traffic of a stated law", "made"),
    "trace": ("recorded traffic by time", "Mooncake, LMCache, Azure"),
    "unique prompts": ("nothing shared: what the cache costs", "made"),
}


def rows(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for cell in cells:
        what, data = WHAT[cell["title"].split(",")[0]]
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
