"""The stages, in their order, and how one is run."""

from __future__ import annotations

import gc
import importlib
import time
import traceback
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.report import Results


class Stage(NamedTuple):
    name: str
    seconds: float
    """Its share of the budget. What earlier stages leave over is shared out among the later ones."""
    module: str
    """Has `cases(setup)`; imported when its turn comes, so that what it needs may be missing."""


STAGES = (
    Stage("ceilings", 20, "experiments.bench.gpu.ceilings"),
    Stage("tests", 130, "experiments.bench.gpu.device_tests"),
    Stage("tune", 0, "experiments.bench.gpu.tuning"),
    Stage("kernels", 150, "experiments.bench.gpu.kernels"),
    Stage("engine", 150, "experiments.bench.gpu.engine"),
    Stage("peers", 60, "experiments.bench.gpu.peers"),
    Stage("differential", 30, "experiments.bench.gpu.differential"),
)
TUNING_S = 240.0
"""Budget of `tune` where it is asked for."""


def limits(names: list[str], left_s: float, tune: bool) -> dict[str, float]:
    """What of `left_s` each of the stages that are still to come may take."""
    weights = {stage.name: stage.seconds for stage in STAGES if stage.name in names}
    if tune and "tune" in weights:
        weights["tune"] = TUNING_S
    whole = sum(weights.values())
    return {name: left_s * weight / whole if whole else 0.0 for name, weight in weights.items()}


def run_stage(stage: Stage, setup: Setup, results: Results, console: Console) -> None:
    """Runs its cases until its deadline. What a case raises is recorded, and the next one begins."""
    limit = setup.deadline - time.time()
    results.begin(stage.name, time.time(), limit)
    console.print(f"{stage.name} (at most {limit:.0f} s)", style="bold")
    try:
        for case in importlib.import_module(stage.module).cases(setup):
            if time.time() > setup.deadline:
                results.skipped(stage.name, case.name, "the stage's time was up")
                console.print(f"  not run, the time is up: {case.name}", style="yellow", markup=False)
                continue
            with console.status(escape(f"{stage.name}: {case.name}")):
                _run_case(stage.name, case, results, console)
            gc.collect()
    except Exception:
        _failed(stage.name, "setting up", traceback.format_exc(), results, console)
    results.end(stage.name, time.time())


def _run_case(stage: str, case: Case, results: Results, console: Console) -> None:
    try:
        for figure in case.run():
            results.add(stage, figure)
            missed = figure.met is False and not results.content.get("rehearsal")
            console.print(
                "  " + figure.line(), style="yellow" if missed else None, markup=False, highlight=False, soft_wrap=True
            )
    except Failed as error:
        _failed(stage, case.name, str(error), results, console)
    except Exception:
        _failed(stage, case.name, traceback.format_exc(), results, console)


def _failed(stage: str, case: str, why: str, results: Results, console: Console) -> None:
    results.failed(stage, case, why)
    console.print(
        f"  failed: {case}: {why.strip().splitlines()[-1]}", style="red", markup=False, highlight=False, soft_wrap=True
    )
