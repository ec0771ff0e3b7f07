"""What weights in 8 bits lose and gain: `python -m experiments.bench.quantised [--models FOLDER] [--out FILE]`.

Loss: next-token distributions of each variant against the same model in float32, over every position of some texts:
perplexity (trained model only), mean KL divergence, how often the likeliest token is the same. `stories260k`, a trained
model (FOLDER has it; RADIXLAB_MODELS by default), on its known greedy story and stories that it samples in float32; a
named shape with random weights on random tokens. fp8, which no CPU stores, is computed in float32 from the weights as
they are after quantising.

Speed: tokens a second of prefill and of decode on this CPU, of int8 against the dtype that is computed in. The variants
take turns within each round; ratios are those of paired rounds, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from engine.models.config import ModelError
from engine.models.shapes import SHAPES
from experiments.bench.quantised_loss import (
    EXACT,
    VARIANTS,
    Loss,
    bytes_of,
    load,
    losses,
    random_texts,
    stories,
)
from experiments.bench.quantised_speed import Load, Seconds, rounds_of
from experiments.bench.radix import write_json
from experiments.environment import environment
from experiments.statistics import Interval, repeat_ratio

TRAINED = "stories260k"


def trained_folder(given: str | None) -> Path | None:
    """Of the trained model, or None where there is none. Raises FileNotFoundError for a given folder without it."""
    name = given or os.environ.get("RADIXLAB_MODELS")
    if not name:
        return None
    folder = Path(name) / TRAINED
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} isn't there: --models names a folder with {TRAINED}/")
    return folder


def loss_rows(name: str, path: str, options: argparse.Namespace, folder: Path | None) -> list[dict[str, Any]]:
    """One row a variant. folder: of a trained model, None for random weights."""
    models = [load(path, variant) for variant in VARIANTS]
    if folder is not None:
        texts = stories(models[0], folder, options.texts, max_tokens=options.text_tokens)
    else:
        texts = random_texts(models[0].config.vocab_size, options.texts, options.text_tokens)
    found = losses(models, texts, trained=folder is not None)
    return [
        {"model": name, "variant": variant.name, "weight_bytes": bytes_of(path, variant), **_plain(loss)}
        for variant, loss in zip(VARIANTS, found, strict=True)
    ]


def _plain(loss: Loss) -> dict[str, Any]:
    return {key: value.record() if isinstance(value, Interval) else value for key, value in loss._asdict().items()}


def speed_rows(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row a variant that this CPU serves and a load."""
    variants = [variant for variant in VARIANTS if variant.kind != "fp8"]
    models = {variant.name: load(name, variant) for variant in variants}
    rows = []
    for batch in options.batches:
        what = Load(batch, options.prompt_tokens, options.new_tokens)
        found = rounds_of(models, what, options.rounds)
        for variant in variants:
            rows.append(
                {
                    "model": name,
                    "variant": variant.name,
                    **what._asdict(),
                    "prefill_s": [run.prefill for run in found[variant.name]],
                    "decode_s": [run.decode for run in found[variant.name]],
                    **_ratios(found[variant.name], found[variant.dtype]),
                }
            )
    return rows


def _ratios(own: Sequence[Seconds], base: Sequence[Seconds]) -> dict[str, Any]:
    """Tokens a second relative to the dtype that is computed in."""
    return {
        "prefill_over_dtype": repeat_ratio([r.prefill for r in own], [r.prefill for r in base]).record(),
        "decode_over_dtype": repeat_ratio([r.decode for r in own], [r.decode for r in base]).record(),
    }


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Raises FileNotFoundError, ModelError, RuntimeError."""
    torch.set_num_threads(options.threads)
    folder = trained_folder(options.models)
    loss: list[dict[str, Any]] = []
    if folder is None:
        console.print(
            f"no {TRAINED}: give --models or RADIXLAB_MODELS; without it there is no perplexity", style="yellow"
        )
    else:
        loss += loss_rows(TRAINED, str(folder), options, folder)
    loss += loss_rows(options.shape, options.shape, options, None)
    return {
        "benchmark": "quantised",
        "threads": options.threads,
        "rounds": options.rounds,
        "texts": options.texts,
        "text_tokens": options.text_tokens,
        "environment": environment(),
        "loss": loss,
        "speed": speed_rows(options.shape, options),
    }


def table(result: dict[str, Any]) -> Table:
    """One row a model and variant."""
    batches = sorted({row["batch"] for row in result["speed"]})
    grid = Table(
        title=f"8-bit weights, {result['threads']} threads; loss against {EXACT.name}, speed against the dtype"
    )
    for name in ("model", "weights", "MB", "perplexity", "x float32", "KL, nats", "same top 1"):
        grid.add_column(name, justify="left" if name in ("model", "weights") else "right")
    for batch in batches:
        grid.add_column(f"prefill, batch {batch}", justify="right")
        grid.add_column(f"decode, batch {batch}", justify="right")
    for row in result["loss"]:
        speeds = {
            one["batch"]: one
            for one in result["speed"]
            if (one["model"], one["variant"]) == (row["model"], row["variant"])
        }
        trained = row["perplexity"] is not None
        grid.add_row(
            row["model"],
            row["variant"],
            f"{row['weight_bytes'] / 1e6:.1f}" if row["weight_bytes"] > 1e7 else f"{row['weight_bytes'] / 1e6:.2f}",
            f"{row['perplexity']:.3f}" if trained else "-",
            _shown(row["perplexity_ratio"], "{:.4f}") if trained else "-",
            _shown(row["kl"], "{:.1e}"),
            _shown(row["top_1"], "{:.2%}"),
            *(
                _shown(speeds[batch][f"{what}_over_dtype"], "{:.2f}x") if batch in speeds else "-"
                for batch in batches
                for what in ("prefill", "decode")
            ),
        )
    return grid


def _shown(interval: dict[str, Any], form: str) -> str:
    low, high = interval["low"], interval["high"]
    value = form.format(interval["value"])
    return value if low is None or low == high else f"{value} [{form.format(low)}, {form.format(high)}]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help=f"folder with {TRAINED}/ (default: RADIXLAB_MODELS)")
    parser.add_argument("--shape", default="llama-110m", choices=sorted(SHAPES), help="random weights, loss and speed")
    parser.add_argument("--texts", type=int, default=16, help="sampled or random ones")
    parser.add_argument("--text-tokens", type=int, default=200)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/quantised.json"))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 200)
    try:
        result = run(options, console)
    except (FileNotFoundError, ModelError, RuntimeError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    write_json(options.out, result)
    console.print(table(result))
    console.print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
