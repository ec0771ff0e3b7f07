"""Benchmark of the workloads: `python -m experiments.bench.workloads [--only NAME ...] [--rounds N] [--out FILE]`.

Every workload on a model of some hundred million parameters with random weights, on the CPU: programs a second with
many going, latency and time to first token with one program at a time; with the cache and the schedule that is aware
of it (policy=lru) against first come first served and against no cache. Beside the hit rate stands that of a cache that
never forgets. The last row shares nothing: it shows what the cache costs where it can save nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments.bench.radix import write_json
from experiments.bench.radix_prompts import data_folder, tinyllama_file
from experiments.bench.workload_cases import CASES, UNIQUE
from experiments.bench.workload_runs import Case, Systems, measure
from experiments.environment import environment

FAR = 0.96
"""Of the hit rate of a cache that never forgets: what is below wants an explanation."""
MOST_COST = 0.02


def table_of(cells: Sequence[dict[str, Any]]) -> Table:
    columns = (
        "workload",
        "outputs",
        "programs",
        "calls",
        "prompt tokens",
        "hit rate",
        "of an infinite cache",
        "programs/s x none",
        "x fcfs",
        "latency: none/lru",
        "TTFT: none/lru",
    )
    table = Table(title="policy=lru against fcfs and none")
    for name in columns:
        table.add_column(name, justify="left" if name in columns[:2] else "right")
    for cell in cells:
        of_lru = cell["throughput"]["lru"]
        hit = sum(one["hit_rate"] for one in of_lru) / len(of_lru)
        best = sum(one["infinite"] for one in of_lru) / len(of_lru)
        ratios = cell["ratios"]
        table.add_row(
            cell["title"],
            cell["outputs"],
            str(cell["programs"]),
            str(of_lru[0]["calls"]),
            f"{of_lru[0]['prompt_tokens']:,}",
            f"{hit:.1%}",
            f"{best:.1%}" + (f" ({hit / best:.0%})" if best else ""),
            _within(ratios["none"]["programs_per_s"]),
            _within(ratios["fcfs"]["programs_per_s"]) if "fcfs" in ratios else "",
            _within(ratios["none"].get("latency_s")),
            _within(ratios["none"].get("ttft_s")),
        )
    return table


def _within(ratio: dict[str, Any] | None) -> str:
    if ratio is None or ratio["value"] is None:
        return "–"
    if ratio["low"] is None:
        return f"{ratio['value']:.2f}"
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.workloads")
    parser.add_argument("--data", help="folder of the real data (default: $RADIXLAB_DATA); without it, the samples")
    parser.add_argument("--only", nargs="*", help="titles of rows, or beginnings of them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unique-rounds", type=int, default=7, help="of the row that shares nothing")
    parser.add_argument("--model", default=None, help="instead of each row's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/workloads.json"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    console = Console(width=200)
    data = data_folder(options.data)
    chosen = [case for case in (*CASES, UNIQUE) if not options.only or case.title.startswith(tuple(options.only))]
    if not chosen:
        parser.error(f"--only {' '.join(options.only)}: no such row; there are {', '.join(c.title for c in CASES)}")
    settings = ["engine.device=cpu", "model.dtype=bfloat16"]
    if data is not None and options.model is None:  # other models have vocabularies of their own
        settings.append(f"model.tokenizer={tinyllama_file(data)}")
    systems = Systems(settings)
    cells: list[dict[str, Any]] = []
    for case in chosen:
        rounds = options.unique_rounds if case is UNIQUE else options.rounds
        console.print(f"{case.title} ...")
        cell = measure(_on(case, options.model), systems, rounds)
        if data is not None:  # results say nothing of the machine's folders
            cell["data"] = {name: text.replace(str(data), "DATA") for name, text in cell["data"].items()}
        cells.append(cell)
        content = {"environment": environment(), "threads": options.threads, "workloads": cells}
        write_json(options.out, content)
    console.print(table_of(cells))
    for cell in cells:
        for line in remarks(cell):
            console.print(f"{cell['title']}: {line}")
    console.print(f"written to {options.out}")
    return 0


def _on(case: Case, model: str | None) -> Case:
    if model is None:
        return case
    kept = [text for text in case.overrides if not text.startswith("model=")]
    return case._replace(overrides=(*kept, f"model={model}"))


def remarks(cell: dict[str, Any]) -> list[str]:
    """What a reader of the row must know."""
    found = []
    runs = cell["throughput"]["lru"]
    for one in runs[:1]:
        if one["infinite"] and one["hit_rate"] < FAR * one["infinite"]:
            found.append(f"the hit rate is {one['hit_rate'] / one['infinite']:.1%} of the best possible")
        if one["failed"]:
            found.append(f"{one['failed']} of {cell['programs']} programs failed, the first: {one['error']}")
    if not any(one["infinite"] > 0.001 for one in runs):
        ratio = cell["ratios"]["none"]["programs_per_s"]
        found.append(f"nothing is shared: {_within(ratio)} x the speed without a cache; {1 - MOST_COST} is asked")
    return found


if __name__ == "__main__":
    sys.exit(main())
