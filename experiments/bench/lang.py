"""Benchmark of the language: `python -m experiments.bench.lang [--data FOLDER] [--only PART ...] [--out FILE]`.

overhead: programs of one gen and of three against the same requests made by hand, eager and compiled.
scale: 10,000 programs of three calls in flight on the mock, 1,000 on `tiny`: seconds, memory.
variants: tree of thought and a judge (branch-solve-merge) with one call at a time, side by side, as graphs, with each
    pass alone and with all that leave greedy outputs as they are; and a batch whose instructions may move.
speculation: calls that a profile of eight fields needs over a scripted API.

Systems take turns within each round; ratios are those of paired rounds, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from engine.config import EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from experiments.bench.lang_overhead import overhead
from experiments.bench.lang_programs import PROGRAMS
from experiments.bench.lang_scale import scale
from experiments.bench.lang_speculation import speculation
from experiments.bench.lang_variants import compare, movement
from experiments.bench.radix import write_json
from experiments.bench.radix_prompts import data_folder, tinyllama_file
from experiments.environment import environment

PARTS = ("overhead", "scale", "variants", "speculation")
TARGETS = {"tiny": 0.05, "llama-110m": 0.01}
"""Of the time of direct calls, at most."""
NEW_TOKENS = 16
SPEC_TOKENS = (32, 64)


def engine_of(model: str, data: Path | None) -> Engine:
    """`tiny` in fp32 with its own tokenizer; others in bf16 with TinyLlama's, or the built-in one without data."""
    tiny = model == "tiny"
    return make_engine(
        EngineConfig(
            model=model,
            dtype="float32" if tiny else "bfloat16",
            tokenizer=None if tiny or data is None else str(tinyllama_file(data)),
            device="cpu",
            pool_tokens=32_768,
        )
    )


def overheads(options: argparse.Namespace, engines: Mapping[str, Engine]) -> list[dict[str, Any]]:
    found = []
    for model, engine in engines.items():
        programs = options.programs if model == "tiny" else options.large_programs
        rounds = options.rounds if model == "tiny" else options.large_rounds
        for gens in (1, 3):
            found.append(overhead(engine, model, programs=programs, gens=gens, new_tokens=NEW_TOKENS, rounds=rounds))
    return found


def variants(options: argparse.Namespace, engines: Mapping[str, Engine]) -> list[dict[str, Any]]:
    found = []
    for model, engine in engines.items():
        tiny = model == "tiny"
        programs = options.variant_programs if tiny else options.large_variant_programs
        rounds = options.variant_rounds if tiny else options.large_variant_rounds
        for at_once in (1, programs) if tiny else (1,):
            found += [
                compare(engine, model, title, programs=programs, at_once=at_once, rounds=rounds) for title in PROGRAMS
            ]
        found.append(movement(engine, model, programs=programs, rounds=rounds))
    return found


# ---- the report


def overhead_table(cells: Sequence[dict[str, Any]]) -> Table:
    columns = (
        "model",
        "programs",
        "gens",
        "",
        "ms a program",
        "time x direct",
        "CPU x direct",
        "extra CPU us a program",
    )
    table = _table(f"programs of nothing but gens, {NEW_TOKENS} new tokens each, against direct calls", columns)
    for cell in cells:
        for name, row in cell["systems"].items():
            table.add_row(
                cell["model"],
                str(cell["programs"]),
                str(cell["gens"]),
                name,
                f"{row['seconds_a_program'] * 1e3:.3f}",
                _within(row["times_direct"]),
                _within(row["times_direct_by_cpu_time"]),
                f"{row['extra_cpu_seconds_a_program'] * 1e6:,.0f}",
            )
        table.add_section()
    return table


def scale_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = ("backend", "programs", "calls", "", "s", "us a program", "peak memory a program, KiB")
    table = _table("programs of three calls, all in flight at once", columns)
    for row in rows:
        memory = row["bytes_a_program"]
        table.add_row(
            row["backend"],
            f"{row['programs']:,}",
            f"{row['calls']:,}",
            row["variant"],
            f"{row['seconds_median']:.2f}",
            f"{row['seconds_median'] / row['programs'] * 1e6:,.0f}",
            "-" if memory is None else f"{memory / 1024:.1f}",
        )
    return table


def variant_table(cell: dict[str, Any]) -> Table:
    columns = (
        "",
        "programs/s",
        "x first row",
        "calls",
        "steps",
        "prompt",
        "cached",
        "output",
        "computed",
        "same outputs",
    )
    title = f"{cell['program']}, {cell['model']}: {cell['programs']} programs, {cell['at_once']} at once; tokens"
    table = _table(title, columns)
    for row in cell["variants"]:
        counts = ("calls", "steps", "prompt_tokens", "cached_tokens", "output_tokens", "computed_tokens")
        table.add_row(
            row["variant"],
            f"{row['programs_per_s']:.2f}",
            _within(row["speedup"]),
            *(f"{row[name]:,}" for name in counts),
            f"{row['programs_with_same_outputs']} of {cell['programs']}",
        )
    return table


def speculation_table(rows: Sequence[dict[str, Any]]) -> Table:
    columns = (
        "the model",
        "num_api_spec_tokens",
        "gens",
        "calls",
        "saved",
        "prompt tokens",
        "without",
        "wasted tokens",
    )
    table = _table("profiles of eight fields over an API", columns)
    for row in rows:
        strays = row["model_strays_after_every"]
        table.add_row(
            "keeps to the form" if strays is None else f"strays after every {strays}rd field",
            str(row["num_api_spec_tokens"]),
            str(row["gens"]),
            str(row["calls"]),
            str(row["saved_calls"]),
            f"{row['prompt_tokens']:,}",
            f"{row['prompt_tokens_without']:,}",
            "-" if row["wasted_tokens"] is None else f"{row['wasted_tokens']:,}",
        )
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    words = ("model", "", "backend", "the model")
    for name in columns:
        table.add_column(name, justify="left" if name in words else "right", no_wrap=True)
    return table


def _within(ratio: Mapping[str, Any]) -> str:
    if ratio["value"] is None:
        return "-"
    if ratio["low"] is None:
        return f"{ratio['value']:.3f}"
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def verdicts(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The overheads against their targets, in words."""
    lines = []
    for cell in cells:
        target = TARGETS.get(cell["model"])
        for name in ("eager", "compiled"):
            row = cell["systems"][name]
            by = "time", row["times_direct"]["value"] - 1, row["times_direct_by_cpu_time"]["value"] - 1
            aim = "" if target is None else f"; the target is under {target:.0%}"
            lines.append(f"{cell['model']}, {cell['gens']} gens, {name}: {by[1]:+.1%} {by[0]}, {by[2]:+.1%} CPU{aim}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, writes the JSON. Exit code 1 when systems didn't do the same work or a program failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with tokenizers/ (default: $RADIXLAB_DATA)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--models", nargs="+", default=["tiny", "llama-110m"], help="of overhead and variants")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
    parser.add_argument("--rounds", type=int, default=20, help="of the overhead on tiny (default 20)")
    parser.add_argument("--large-rounds", type=int, default=5, help="on other models (default 5)")
    parser.add_argument("--variant-rounds", type=int, default=6, help="of the variants on tiny (default 6)")
    parser.add_argument("--large-variant-rounds", type=int, default=3, help="on other models (default 3)")
    parser.add_argument("--scale-rounds", type=int, default=3)
    parser.add_argument("--programs", type=int, default=64, help="of the overhead on tiny (default 64)")
    parser.add_argument("--large-programs", type=int, default=16, help="on other models (default 16)")
    parser.add_argument("--variant-programs", type=int, default=4, help="on tiny (default 4)")
    parser.add_argument("--large-variant-programs", type=int, default=2, help="on other models (default 2)")
    parser.add_argument("--mock-programs", type=int, default=10_000)
    parser.add_argument("--engine-programs", type=int, default=1_000)
    parser.add_argument("--out", type=Path, default=Path("experiments/results/lang.json"))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    say: Callable[[str], None] = lambda line: console.print("  " + line)  # noqa: E731
    torch.set_num_threads(options.threads)
    data = data_folder(options.data)
    if data is None and options.models != ["tiny"]:
        console.print("without data the larger models have the built-in tokenizer; give --data, or set RADIXLAB_DATA")
    settings = {name: value for name, value in vars(options).items() if name not in ("data", "out")}
    result: dict[str, Any] = {
        "benchmark": "lang",
        "settings": settings,
        "targets": TARGETS,
        "environment": environment(),
    }
    try:
        if "scale" in options.only:
            sizes = {"mock": options.mock_programs, "tiny": options.engine_programs}
            result["scale"] = scale(sizes, options.scale_rounds, say)
            console.print(scale_table(result["scale"]))
            write_json(options.out, result)
        if "speculation" in options.only:
            result["speculation"] = speculation(options.programs, SPEC_TOKENS)
            console.print(speculation_table(result["speculation"]))
            write_json(options.out, result)
        if {"overhead", "variants"} & set(options.only):
            engines = {model: engine_of(model, data) for model in options.models}
            if "overhead" in options.only:
                result["overhead"] = overheads(options, engines)
                console.print(overhead_table(result["overhead"]))
                for line in verdicts(result["overhead"]):
                    console.print(line)
                write_json(options.out, result)
            if "variants" in options.only:
                result["variants"] = variants(options, engines)
                for cell in result["variants"]:
                    console.print(variant_table(cell))
                write_json(options.out, result)
    except RuntimeError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
