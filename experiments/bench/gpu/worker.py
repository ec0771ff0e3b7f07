"""The process that holds the device and runs the stages one after another.

    python -m experiments.bench.gpu.worker --pointer FILE ...

Started by `python -m experiments.bench.gpu`, which watches it: should it hang or die in a stage, another one goes on
with the next stage.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console

from engine.kernels.tiles import file_name
from experiments.bench.gpu import ceilings
from experiments.bench.gpu.case import Setup
from experiments.bench.gpu.report import Results, write_text
from experiments.bench.gpu.stages import STAGES, limits, run_stage
from experiments.environment import environment

NO_GPU, BROKEN_DEVICE = 2, 75
NO_GPU_MESSAGE = (
    "no NVIDIA GPU that torch {torch} can use was found on this machine; --dry-run rehearses everything on the CPU"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when every stage had its turn, NO_GPU, or BROKEN_DEVICE when another worker has to go on."""
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not options.dry_run and not torch.cuda.is_available():
        console.print(NO_GPU_MESSAGE.format(torch=torch.__version__), markup=False, highlight=False)
        return NO_GPU
    if options.dry_run:
        torch.set_num_threads(1)
    results = Results(_folder(options))
    if "options" not in results.content:
        _describe(results, options)
    write_text(options.pointer, str(results.path.parent))
    chosen = [stage for stage in STAGES if stage.name in options.stages]
    while waiting := [stage for stage in chosen if results.status(stage.name) == "waiting"]:
        left = options.deadline - time.time()
        if left <= 0:
            return 0
        limit = limits([stage.name for stage in waiting], left, options.tune or options.dry_run)[waiting[0].name]
        run_stage(waiting[0], _setup(options, results, time.time() + limit), results, console)
        if not _healthy():
            return BROKEN_DEVICE
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.gpu.worker")
    parser.add_argument("--pointer", type=Path, required=True, help="file that will hold the path of the results")
    parser.add_argument("--root", type=Path, required=True, help="folder of <gpu>/<date>/")
    parser.add_argument("--resume", type=Path, help="folder of results to go on with")
    parser.add_argument("--deadline", type=float, required=True, help="on the wall clock, seconds")
    parser.add_argument("--stages", nargs="+", required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--tune", action="store_true")
    return parser.parse_args(arguments)


def _folder(options: argparse.Namespace) -> Path:
    """<root>/<gpu>/<date>, numbered where that exists."""
    if options.resume is not None:
        return Path(options.resume)
    name = "rehearsal" if options.dry_run else file_name(torch.cuda.get_device_name(0))
    base = Path(options.root) / name / f"{datetime.now():%Y-%m-%d}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{base.name}.{number}"), number + 1
    return folder


def _describe(results: Results, options: argparse.Namespace) -> None:
    results.content |= {
        "benchmark": "gpu",
        "rehearsal": options.dry_run,
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "options": {"stages": options.stages, "tune": options.tune},
        "environment": environment() | _device(),
    }
    results.write()


def _device() -> dict[str, str | int | None]:
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "capability": f"{properties.major}.{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30),
        "cuda": torch.version.cuda,
    }


def _setup(options: argparse.Namespace, results: Results, deadline: float) -> Setup:
    stage = results.content["stages"].get("ceilings", {"figures": []})
    figures = {figure["name"]: figure["value"] for figure in stage["figures"]}
    gpu = results.content["environment"].get("gpu") or "rehearsal"
    return Setup(
        device=torch.device("cpu" if options.dry_run else "cuda"),
        rehearsal=options.dry_run,
        folder=results.path.parent,
        measured=ceilings.measured(figures, gpu),
        tune=options.tune,
        deadline=deadline,
    )


def _healthy() -> bool:
    """The device still answers: after an illegal access it refuses everything until the process ends."""
    if not torch.cuda.is_available():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
