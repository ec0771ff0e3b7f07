"""A layer of experts on the CPU: tokens grouped by expert, against token by token and against transformers' own.

    python -m experiments.bench.moe [--dtypes bfloat16 float32] [--tokens 1 8 64 1024] [--rounds 9]

One layer of a named Mixtral shape with random weights, the same ones for all; a random router spreads the tokens. A
call is router, experts and residual sum. The systems take turns within each round, which begins with another one each
time, so what else the machine does hits them alike; ratios are those of paired rounds. What each finds is held against
the sum in float64.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from engine.kernels.cpu.linear import Linear
from engine.kernels.cpu.moe import moe_reference
from engine.models.config import ModelConfig, config_to_hf
from engine.models.llama import SwiGLU
from engine.models.mixtral import SparseMoE, route
from engine.models.shapes import SHAPES
from engine.models.weights import dtype_named
from experiments.bench.radix import write_json
from experiments.environment import environment
from experiments.statistics import repeat_ratio

OURS = "ours: grouped"
MIXTRALS = sorted(name for name, shape in SHAPES.items() if shape.n_experts)
TOLERANCE = {"bfloat16": 0.03, "float32": 1e-5}
"""Of ||found - truth|| / ||truth||. Tokens whose choice of experts bfloat16 may change are left out: near-ties."""
NEAR_TIE = {"bfloat16": 0.02, "float32": 1e-4}
"""Of the router's logits, between the last expert that is taken and the first that isn't."""

Layer = Callable[[Tensor], Tensor]
"""[tokens, hidden] -> [tokens, hidden], the residual sum included."""


class Weights(NamedTuple):
    """Of one layer, float32."""

    router: Tensor
    """[experts, hidden]"""
    gate: Tensor
    """[experts, inner, hidden]"""
    up: Tensor
    """[experts, inner, hidden]"""
    down: Tensor
    """[experts, hidden, inner]"""


def random_weights(shape: ModelConfig, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    n, inner, hidden = shape.n_experts, shape.intermediate_size, shape.hidden_size

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator) * size[-1] ** -0.5

    return Weights(normal(n, hidden), normal(n, inner, hidden), normal(n, inner, hidden), normal(n, hidden, inner))


def experts_of(weights: Weights, dtype: torch.dtype) -> list[SwiGLU]:
    parts = zip(weights.gate, weights.up, weights.down, strict=True)
    return [SwiGLU(*(Linear(weight.to(dtype)) for weight in part)) for part in parts]


def systems(shape: ModelConfig, weights: Weights, dtype: torch.dtype) -> dict[str, Layer]:
    """Ours, the naive loop over the same products, and transformers' block in the ways it has for a CPU."""
    experts, router, k = experts_of(weights, dtype), weights.router.to(dtype), shape.n_experts_per_token
    block = SparseMoE(router, experts, k)

    def ours(h: Tensor) -> Tensor:
        return block.plus(h, h)

    def naive(h: Tensor) -> Tensor:
        return moe_reference(h, experts, *route(torch.nn.functional.linear(h, router), k)).add_(h)

    made: dict[str, Layer] = {OURS: ours, "token by token": naive}
    for way in ("grouped_mm", "eager"):
        made[f"transformers: {way}"] = with_residual(transformers_block(shape, weights, dtype, way))
    return made


def with_residual(block: Any) -> Layer:
    return lambda h: block(h[None])[0].add_(h)


def transformers_block(shape: ModelConfig, weights: Weights, dtype: torch.dtype, way: str) -> Any:
    """way: grouped_mm (what transformers takes by itself) or eager."""
    from transformers import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    contents = config_to_hf(shape, str(dtype).removeprefix("torch."))
    config = MixtralConfig(**{k: v for k, v in contents.items() if k not in ("architectures", "model_type")})
    config._experts_implementation = way
    block = MixtralSparseMoeBlock(config)
    state = {
        "gate.weight": weights.router,
        "experts.gate_up_proj": torch.cat([weights.gate, weights.up], dim=1),
        "experts.down_proj": weights.down,
    }
    block.load_state_dict(state)
    return block.to(dtype).eval()


def errors(
    found: Mapping[str, Tensor], h: Tensor, weights: Weights, dtype: torch.dtype, k: int
) -> tuple[dict[str, float | None], int]:
    """||found - truth|| / ||truth|| of each system, and how many tokens were compared; the truth is in float64.

    None where no token's choice of experts is clear.
    """
    rounded = Weights(*(weight.to(dtype).double() for weight in weights))
    wide = h.double()
    logits = wide @ rounded.router.T
    truth = moe_reference(wide, experts_of(rounded, torch.float64), *route(logits, k)) + wide
    ranked = logits.sort(dim=1, descending=True).values
    clear = torch.ones(len(h), dtype=torch.bool)
    if k < logits.shape[1]:
        clear = ranked[:, k - 1] - ranked[:, k] > NEAR_TIE[str(dtype).removeprefix("torch.")]
    if not clear.any():
        return dict.fromkeys(found), 0
    norm = truth[clear].norm()
    return {name: float((y.double() - truth)[clear].norm() / norm) for name, y in found.items()}, int(clear.sum())


def measure(layers: Mapping[str, Layer], h: Tensor, rounds: int, least_s: float) -> dict[str, list[float]]:
    """Seconds a call in each round, `least_s` or more of calls each time."""
    names = list(layers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    calls: dict[str, int] = {}
    for name in names:  # kernels are made for the shape, weights are touched
        layers[name](h)
        begun = time.perf_counter()
        layers[name](h)
        calls[name] = max(1, round(least_s / (time.perf_counter() - begun)))
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            begun = time.perf_counter()
            for _ in range(calls[name]):
                layers[name](h)
            seconds[name].append((time.perf_counter() - begun) / calls[name])
    return seconds


@torch.inference_mode()
def run(options: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """All cells."""
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.model]
    weights = random_weights(shape, options.seed)
    generator = torch.Generator().manual_seed(options.seed + 1)
    cells: list[dict[str, Any]] = []
    for name in options.dtypes:
        dtype = dtype_named(name)
        layers = systems(shape, weights, dtype)
        for n in options.tokens:
            h = torch.randn(n, shape.hidden_size, generator=generator).to(dtype)
            found = {system: layer(h) for system, layer in layers.items()}
            wrong_by, compared = errors(found, h, weights, dtype, shape.n_experts_per_token)
            seconds = measure(layers, h, options.rounds, options.least_s)
            say(f"{name}, {n} tokens")
            for system, own in seconds.items():
                ratio = repeat_ratio(seconds[OURS], own)
                cells.append(
                    {
                        "dtype": name,
                        "tokens": n,
                        "system": system,
                        "ms": 1e3 * statistics.median(own),
                        "times_ours": ratio.value,
                        "times_ours_95": [ratio.low, ratio.high],
                        "error": wrong_by[system],
                        "compared_tokens": compared,
                        "seconds": own,
                    }
                )
    return {
        "benchmark": "moe",
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "environment": environment(),
        "cells": cells,
    }


def table(result: dict[str, Any]) -> Table:
    """One row a cell and system."""
    grid = Table(title=f"One layer of experts, {result['model']}, {result['threads']} thread(s)")
    for name in ("dtype", "tokens", "system", "ms", "x ours", "(95 %)", "error"):
        grid.add_column(name, justify="left" if name in ("dtype", "system") else "right")
    for cell in result["cells"]:
        low, high = cell["times_ours_95"]
        grid.add_row(
            cell["dtype"],
            f"{cell['tokens']:,}",
            cell["system"],
            f"{cell['ms']:.3f}",
            f"{cell['times_ours']:.2f}",
            "-" if low is None else f"{low:.2f} - {high:.2f}",
            "-" if cell["error"] is None else f"{cell['error']:.1e}",
            end_section=cell["system"] == result["cells"][-1]["system"],
        )
    return grid


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a system of ours is further from the truth than its dtype explains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mixtral-small", choices=MIXTRALS, help="a named shape")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"], choices=sorted(TOLERANCE))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 8, 64, 1024], help="of a call")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--least-s", type=float, default=0.05, help="seconds of calls in a measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/moe.json"))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 110)
    result = run(options, lambda line: console.print("  " + line))
    write_json(options.out, result)
    console.print(table(result))
    console.print(f"written to {options.out}")
    wrong = [
        f"{cell['dtype']}, {cell['tokens']} tokens, {cell['system']}: error {cell['error']:.1e}"
        for cell in result["cells"]
        if cell["error"] is not None
        and not cell["error"] <= TOLERANCE[cell["dtype"]]
        and not cell["system"].startswith("transformers")
    ]
    for line in wrong:
        console.print(f"far from the truth: {line}", style="red", markup=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
