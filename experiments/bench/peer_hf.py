"""Ours against transformers' `generate`: real MMLU prompts, one set of weights, everything in one process.

    python -m experiments.bench.peer_hf --data DIR [--dtypes bfloat16 float32] [--new-tokens 1 32] [--rounds 3]

The first 3 subjects in alphabetical order, 5-shot, 40 questions each; all prompts handed over at once; greedy. The
systems take turns within each round, so what else the machine does hits them alike; the ratios are those of paired
rounds. Each of our runs begins with an empty cache. CPU seconds stand beside the wall clock: with one thread on a busy
machine they are the better measure (threads that wait for one another burn CPU time too).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.cpu import CpuExecutor
from engine.models.llama import Llama
from engine.models.load import load_model
from engine.models.shapes import SHAPES
from engine.models.weights import dtype_named, save_random
from engine.request import SamplingParams, Tokens
from experiments.bench.radix_prompts import data_folder, mmlu_prompts
from experiments.environment import environment
from experiments.statistics import repeat_ratio

PAD = 0
TARGETS = {("bfloat16", 1): 6.0, ("bfloat16", 32): 4.5, ("float32", 1): 6.0, ("float32", 32): 5.0}
"""With the cache on, times the requests per second of transformers."""
TARGET_OFF = 1.05
NEAR_TIE = {"bfloat16": 0.1, "float32": 1e-3}
"""First tokens may differ where the logits of both (in float32) are closer than this."""


class Run(NamedTuple):
    seconds: float
    cpu_seconds: float
    outputs: list[list[int]]
    computed_tokens: int
    overhead: float | None = None
    """Share of the steps' time that went to scheduling and the cache."""


System = Callable[[Sequence[Tokens], int], Run]


class OursOnCpu:
    """Our engine, a new one (with an empty cache) for each run."""

    def __init__(self, model: Llama, cache: str, prompts: Sequence[Tokens], max_batch_tokens: int) -> None:
        self.dtype = str(model.dtype).removeprefix("torch.")
        self.cache = cache
        self.max_batch_tokens = max_batch_tokens
        n_tokens = sum(map(len, prompts)) + 64 * len(prompts)
        self.executor = CpuExecutor(model, n_pages=n_tokens, page_size=1)

    def __call__(self, prompts: Sequence[Tokens], new_tokens: int) -> Run:
        config = EngineConfig(cache=self.cache, dtype=self.dtype, max_batch_tokens=self.max_batch_tokens)
        engine = Engine(self.executor, None, config)
        params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
        begun, cpu = time.perf_counter(), time.process_time()
        requests = engine.generate(prompts, params)
        seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
        failed = [request.error for (request,) in requests if request.error is not None]
        if failed:
            raise RuntimeError(f"{len(failed)} of our requests failed, the first with: {failed[0]}")
        steps = engine.metrics.steps
        computed = sum(step.n_prefill for step in steps)
        ours = sum(step.schedule_s + step.cache_s for step in steps)
        whole = ours + sum(step.forward_s + step.other_s for step in steps)
        return Run(seconds, cpu_seconds, [list(request.output) for (request,) in requests], computed, ours / whole)


class Transformers:
    """`generate` in batches of 8 in the given order, padded on the left."""

    def __init__(self, folder: Path, dtype: str, batch: int = 8) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype_named(dtype)).eval()
        self.batch = batch

    def __call__(self, prompts: Sequence[Tokens], new_tokens: int) -> Run:
        outputs: list[list[int]] = []
        computed = 0
        begun, cpu = time.perf_counter(), time.process_time()
        for first in range(0, len(prompts), self.batch):
            part = prompts[first : first + self.batch]
            width = max(map(len, part))
            ids = torch.full((len(part), width), PAD)
            mask = torch.zeros_like(ids)
            for row, prompt in enumerate(part):
                ids[row, width - len(prompt) :] = torch.from_numpy(prompt)
                mask[row, width - len(prompt) :] = 1
            found = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=PAD,
                eos_token_id=None,
            )
            outputs += found[:, width:].tolist()
            computed += ids.numel()
        return Run(time.perf_counter() - begun, time.process_time() - cpu, outputs, computed)


def disagreements(ours: Run, theirs: Run, prompts: Sequence[Tokens], judge: OursOnCpu, near_tie: float) -> list[str]:
    """First tokens that differ without being a near-tie; empty when all is well. `judge` runs in float32."""
    differ = [i for i, (a, b) in enumerate(zip(ours.outputs, theirs.outputs, strict=True)) if a[0] != b[0]]
    if not differ:
        return []
    engine = Engine(judge.executor, None, EngineConfig(cache="none"))
    found: list[str] = []
    for i in differ:
        pair = (ours.outputs[i][0], theirs.outputs[i][0])
        (a,), (b,) = engine.score(prompts[i].tolist(), [[token] for token in pair])
        if abs(a.logprob - b.logprob) > near_tie:
            found.append(f"prompt {i}: token {pair[0]} (logprob {a.logprob:.4f}) against {pair[1]} ({b.logprob:.4f})")
    return found


def measure(
    systems: dict[str, System], prompts: Sequence[Tokens], new_tokens: int, rounds: int, say: Callable[[str], None]
) -> dict[str, list[Run]]:
    """`rounds` runs of each system, in turns that begin with another one each round."""
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    names = list(systems)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            run = systems[name](prompts, new_tokens)
            runs[name].append(run)
            say(f"round {i + 1}, {name}: {run.seconds:.2f} s ({run.cpu_seconds:.2f} s of CPU)")
    return runs


def summary(runs: list[Run], peer: list[Run], n_requests: int) -> dict[str, Any]:
    """What is reported of one system in one cell."""
    wall = repeat_ratio([run.seconds for run in runs], [run.seconds for run in peer])
    cpu = repeat_ratio([run.cpu_seconds for run in runs], [run.cpu_seconds for run in peer])
    return {
        "seconds": [run.seconds for run in runs],
        "cpu_seconds": [run.cpu_seconds for run in runs],
        "requests_per_s": n_requests / statistics.median(run.seconds for run in runs),
        "prompt_tokens_computed": runs[0].computed_tokens,
        "schedule_and_cache_share": None
        if runs[0].overhead is None
        else statistics.median(run.overhead for run in runs if run.overhead is not None),
        "times_transformers": wall.value,
        "times_transformers_95": [wall.low, wall.high],
        "times_transformers_by_cpu_time": cpu.value,
        "times_transformers_by_cpu_time_95": [cpu.low, cpu.high],
    }


def target(dtype: str, new_tokens: int, system: str) -> float | None:
    if system == "ours, cache on":
        return TARGETS.get((dtype, new_tokens))
    return TARGET_OFF if system == "ours, cache off" else None


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """All cells. Raises FileNotFoundError without data, RuntimeError when a request fails."""
    data = data_folder(options.data)
    if data is None:
        raise FileNotFoundError("no data: give --data DIR or set RADIXLAB_DATA to a folder with mmlu/ and tokenizers/")
    torch.set_num_threads(options.threads)
    prompts = mmlu_prompts(data)[: options.requests]
    n_tokens = sum(map(len, prompts))
    console.print(f"{len(prompts)} prompts of {n_tokens:,} tokens, {options.model}, {torch.get_num_threads()} threads")
    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        save_random(SHAPES[options.model], options.seed, torch.float32, Path(folder))
        judge = OursOnCpu(load_model(folder, "float32"), "none", prompts, options.max_batch_tokens)
        for dtype in options.dtypes:
            model = load_model(folder, dtype)
            systems: dict[str, System] = {
                "ours, cache on": OursOnCpu(model, "radix", prompts, options.max_batch_tokens),
                "ours, cache off": OursOnCpu(model, "none", prompts, options.max_batch_tokens),
                "transformers": Transformers(Path(folder), dtype),
            }
            for system in systems.values():  # memory is touched and kernels are made for the shapes to come
                system(prompts, 1)
            for new_tokens in options.new_tokens:
                console.print(f"{dtype}, {new_tokens} new tokens")
                runs = measure(systems, prompts, new_tokens, options.rounds, lambda line: console.print("  " + line))
                peer = runs["transformers"]
                for name, own in runs.items():
                    wrong = disagreements(own[0], peer[0], prompts, judge, NEAR_TIE[dtype])
                    equal = sum(a[0] == b[0] for a, b in zip(own[0].outputs, peer[0].outputs, strict=True))
                    cells.append(
                        {
                            "dtype": dtype,
                            "new_tokens": new_tokens,
                            "system": name,
                            **summary(own, peer, len(prompts)),
                            "target": target(dtype, new_tokens, name),
                            "first_tokens_equal": equal,
                            "first_tokens_wrong": wrong,
                        }
                    )
    return {
        "benchmark": "peer_hf",
        "model": options.model,
        "requests": len(prompts),
        "prompt_tokens": n_tokens,
        "threads": options.threads,
        "rounds": options.rounds,
        "max_batch_tokens": options.max_batch_tokens,
        "environment": environment(),
        "cells": cells,
    }


def table(result: dict[str, Any]) -> Table:
    """One row a cell and system."""
    grid = Table(title=f"{result['requests']} MMLU prompts, {result['model']}, {result['threads']} threads")
    for name in (
        "dtype",
        "new",
        "system",
        "req/s",
        "x transformers",
        "(95 %)",
        "by CPU time",
        "target",
        "computed",
        "same",
        "sched+cache",
    ):
        grid.add_column(name, justify="left" if name in ("dtype", "system") else "right")
    for cell in result["cells"]:
        low, high = cell["times_transformers_95"]
        grid.add_row(
            cell["dtype"],
            str(cell["new_tokens"]),
            cell["system"],
            f"{cell['requests_per_s']:.2f}",
            f"{cell['times_transformers']:.2f}",
            "-" if low is None else f"{low:.2f} - {high:.2f}",
            f"{cell['times_transformers_by_cpu_time']:.2f}",
            "-" if cell["target"] is None else f"{cell['target']:g}",
            f"{cell['prompt_tokens_computed']:,}",
            f"{cell['first_tokens_equal']}/{result['requests']}",
            "-" if cell["schedule_and_cache_share"] is None else f"{cell['schedule_and_cache_share']:.2%}",
        )
    return grid


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(json.dumps(result, indent=1), encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when first tokens are wrong or the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with mmlu/ and tokenizers/ (default: RADIXLAB_DATA)")
    parser.add_argument("--model", default="llama-110m", choices=sorted(SHAPES), help="a named shape")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=sorted(NEAR_TIE))
    parser.add_argument("--new-tokens", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=120, help="only the first so many prompts")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--max-batch-tokens", type=int, default=4096, help="our token budget of a step")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/peer_hf.json"))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 130)
    try:
        result = run(options, console)
    except (FileNotFoundError, RuntimeError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    write_json(options.out, result)
    console.print(table(result))
    console.print(f"written to {options.out}")
    wrong = [line for cell in result["cells"] for line in cell["first_tokens_wrong"]]
    for line in wrong:
        console.print(f"first tokens differ: {line}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
