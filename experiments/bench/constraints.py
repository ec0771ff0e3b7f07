"""Benchmark of constrained decoding: `python -m experiments.bench.constraints [--data FOLDER] [--out FILE]`.

What a mask and a grammar's compilation cost in each backend, and what constrained decoding gains from jump-forward and
loses to unconstrained decoding, on the two tasks of the SGLang repository's jump-forward benchmark.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from experiments.bench.constraint_decoding import RUN_LENGTHS, Bench, Decoding, PassCost, forced_price
from experiments.bench.constraint_inputs import Task, tasks, vocabularies
from experiments.bench.constraint_masks import MaskCost, regex_cost, schema_cost
from experiments.bench.radix import write_json
from experiments.bench.radix_prompts import data_folder, tinyllama_file
from experiments.statistics import Interval

BATCHES = (1, 16)
POOL_TOKENS = 65_536
TARGETS = {"speedup_of_bound": 0.85, "overhead_at_16": 0.02, "waited_share": 0.02}


def mask_costs(data: Path, both: Sequence[Task], n_schemas: int, repeats: int) -> list[MaskCost]:
    backends = ["fsm", "llguidance", *(["xgrammar"] if find_spec("xgrammar") else [])]
    costs = []
    for vocabulary, tokenizer in vocabularies(data).items():
        costs += [regex_cost(task, name, vocabulary, tokenizer, repeats) for task in both for name in backends]
        if n_schemas:
            served = [name for name in backends if name != "fsm"]  # it reads regexes and choices
            costs += [schema_cost(data, n_schemas, name, vocabulary, tokenizer) for name in served]
    return costs


def mask_table(costs: Sequence[MaskCost]) -> Table:
    table = Table(title="masks, one thread")
    for name in (
        "grammars",
        "backend",
        "tokens",
        "refused",
        "us a mask p50",
        "p99",
        "ms to first p50",
        "p99",
        "forced",
    ):
        table.add_column(name, justify="left" if name in ("grammars", "backend") else "right")
    for cost in costs:
        figures = (cost.mask_us_p50, cost.mask_us_p99, cost.first_mask_ms_p50, cost.first_mask_ms_p99)
        table.add_row(
            cost.grammar,
            cost.backend,
            cost.vocabulary,
            f"{cost.refused} of {cost.refused + cost.compiled}",
            *("" if value is None else f"{value:,.1f}" for value in figures),
            "" if cost.forced_share is None else f"{cost.forced_share:.0%}",
        )
    return table


def decoding_table(rows: Sequence[Decoding], title: str) -> Table:
    table = Table(title=title, caption="tokens a second; jump: with jump-forward, decoded: without, free: no grammar")
    names = ("task", "batch", "jump", "decoded", "free", "forced", "jump / decoded", "bound", "bound here")
    for name in (*names, "free / decoded - 1", "waited"):
        table.add_column(name, justify="left" if name == "task" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.task,
            str(row.batch),
            *(f"{each.value:,.0f}" for each in (row.jump_per_s, row.decoded_per_s, row.free_per_s)),
            f"{row.forced_share:.0%}",
            _within(row.speedup, "{:.2f}"),
            f"{row.bound:.2f}",
            f"{row.bound_here:.2f}",
            _within(row.overhead, "{:+.1%}"),
            f"{row.waited_share:.1%}",
        )
    return table


def pass_table(costs: Sequence[PassCost]) -> Table:
    table = Table(title="a pass over cached prompts: its milliseconds by the tokens of each row")
    table.add_column("batch", justify="right")
    for n in RUN_LENGTHS:
        table.add_column(str(n), justify="right")
    for batch in BATCHES:
        table.add_row(str(batch), *(f"{cost.seconds * 1e3:,.1f}" for cost in costs if cost.batch == batch))
    return table


def _within(value: Interval, form: str) -> str:
    if value.low is None or value.high is None:
        return form.format(value.value)
    return f"{form.format(value.value)} [{form.format(value.low)}, {form.format(value.high)}]"


def verdicts(rows: Sequence[Decoding], costs: Sequence[PassCost]) -> list[str]:
    lines = []
    for row in rows:
        of_bound = (row.speedup.value or 0) / row.bound
        price = forced_price(costs, row.batch)
        lines.append(
            f"{row.task}, batch {row.batch}: {of_bound:.0%} of the bound 1/(1 - {row.forced_share:.2f}) (target "
            f"{TARGETS['speedup_of_bound']:.0%}); a forced token costs {price:.2f} of a row's decode step here"
        )
        if row.batch == max(BATCHES):
            lines.append(
                f"{row.task}, batch {row.batch}: without jump-forward {row.overhead.value or 0:+.1%} against "
                f"unconstrained decoding (target at most {TARGETS['overhead_at_16']:.0%})"
            )
        waited = max(row.waited_share, row.waited_share_decoded)
        lines.append(
            f"{row.task}, batch {row.batch}: waited for masks {waited:.2%} of the time (target under "
            f"{TARGETS['waited_share']:.0%})"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, writes the JSON."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.constraints")
    parser.add_argument("--data", help="folder with tokenizers/, maskbench/, ... (default: $RADIXLAB_DATA)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/constraints.json"))
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved runs of each kind (default 5)")
    parser.add_argument("--schemas", type=int, default=200, help="MaskBench schemas (default 200; 0: none)")
    parser.add_argument("--compilations", type=int, default=20, help="of each regex (default 20)")
    parser.add_argument("--model", default="llama-110m", help="named shape with a vocabulary of 32,000")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backend", default="llguidance", help="of the end-to-end runs")
    parser.add_argument("--page", type=int, default=2_000, help="characters of a city's page (default 2,000)")
    parser.add_argument("--only", choices=("masks", "decoding"))
    options = parser.parse_args(arguments)
    console = Console(width=150)
    data = data_folder(options.data)
    if data is None:
        console.print("no data: give --data FOLDER, or set RADIXLAB_DATA")
        return 2
    torch.set_num_threads(options.threads)
    both = tasks(data, options.page)
    masks: list[MaskCost] = []
    rows: list[Decoding] = []
    passes: list[PassCost] = []
    if options.only != "decoding":
        masks = mask_costs(data, both, options.schemas, repeats=options.compilations)
        console.print(mask_table(masks))
    if options.only != "masks":
        model = (options.model, options.dtype, tinyllama_file(data), options.backend)
        for batch in BATCHES:
            bench = Bench(*model, batch=batch, pool_tokens=POOL_TOKENS)
            costs = bench.pass_costs(both[0], 2 * options.rounds)
            rows += [bench.decoding(task, options.rounds, costs) for task in both]
            passes += costs
        title = f"{options.model}, {options.dtype}, {options.threads} threads, {options.backend}, prompts cached"
        console.print(decoding_table(rows, title))
        console.print(pass_table(passes))
        for line in verdicts(rows, passes):
            console.print(line)
    settings: dict[str, Any] = {k: getattr(options, k) for k in ("threads", "rounds", "schemas", "model", "dtype")}
    content = {
        "settings": {**settings, "backend": options.backend, "page_characters": options.page},
        "masks": [cost._asdict() for cost in masks],
        "decoding": [{k: v.record() if isinstance(v, Interval) else v for k, v in r._asdict().items()} for r in rows],
        "passes": [cost._asdict() for cost in passes],
        "targets": TARGETS,
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cpu": platform.processor() or platform.machine(),
        },
    }
    write_json(options.out, content)
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
