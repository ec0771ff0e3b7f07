"""Puts finished runs side by side: paired ratios with 95 % intervals, and one report.

    python -m experiments.compare outputs/mmlu/lru/RUN outputs/mmlu/none/RUN

The first run is the base. Programs are paired by name and repeat, throughput by repeat.
Exit code: 0 compared, 1 a run can't be read, 2 the runs can't be compared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.console import Console
from rich.table import Table

from experiments.compare_report import render_comparison
from experiments.metrics import LATENCIES
from experiments.outputs import OutputError, UnreadableRunError, read_summary, write_text, write_whole
from experiments.statistics import Interval, paired_ratio, repeat_ratio

MUST_AGREE = ("workload", "data.sha256", "model", "random_weights", "outputs")
SHOULD_AGREE = (
    "seed",
    "load",
    "system",
    "device",
    "pool_tokens",
    "environment.git",
    "environment.cpu",
    "environment.gpu",
)
THROUGHPUTS = ("programs_per_s", "output_tokens_per_s")


class NotComparableError(ValueError):
    """The runs measured different things. The message says which."""


class Run(NamedTuple):
    """A finished run, read back."""

    folder: Path
    name: str
    summary: dict[str, Any]
    requests: pd.DataFrame


class Comparison(NamedTuple):
    """One run against the base."""

    run: Run
    ratios: dict[str, Interval]
    """Metric: run / base. Below 1 is better for latencies, above 1 for throughputs."""
    hit_rate: tuple[float | None, float | None]
    """Of the base, of the run."""


def read_run(folder: Path) -> Run:
    """Raises UnreadableRunError for anything that isn't a finished run."""
    summary = read_summary(folder)
    try:
        requests = pd.read_parquet(folder / "requests.parquet")
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise UnreadableRunError(f"{folder / 'requests.parquet'} can't be read: {error}") from error
    missing = {"repeat", "program", "call", "ttft_s"} - set(requests.columns)
    if missing:
        raise UnreadableRunError(
            f"{folder / 'requests.parquet'} lacks {', '.join(sorted(missing))}: it isn't a run's table"
        )
    return Run(folder, str(summary["policy"]), summary, requests)


def differences(base: Run, other: Run) -> tuple[list[str], list[str]]:
    """What makes a comparison meaningless, and what a reader must know of, in words."""
    grave = _differing(base, other, MUST_AGREE)
    slight = _differing(base, other, SHOULD_AGREE)
    ours, theirs = set(base.requests["program"]), set(other.requests["program"])
    if not ours & theirs:
        grave.append("no program has the same name in both")
    elif ours != theirs:
        slight.append(f"{len(ours ^ theirs)} programs are in one run only and are left out of the pairs")
    if min(base.summary["repeats"], other.summary["repeats"]) == 1:
        slight.append(
            "one run only: intervals tell how programs differ, not how much the machine drifts; use repeats=N"
        )
    elif base.summary["repeats"] != other.summary["repeats"]:
        slight.append(f"repeats: {base.summary['repeats']} and {other.summary['repeats']}; the first are paired")
    return grave, slight


def compare(base: Run, other: Run) -> Comparison:
    """Ratios other / base."""
    ratios: dict[str, Interval] = {}
    for name in THROUGHPUTS:
        pairs = list(zip(base.summary["by_repeat"], other.summary["by_repeat"]))
        ratios[name] = repeat_ratio([_number(a[name]) for a, _ in pairs], [_number(b[name]) for _, b in pairs])
    for name in LATENCIES:
        ratios[name] = latency_ratio(_by_program(base, name), _by_program(other, name))
    return Comparison(other, ratios, (base.summary["hit_rate"], other.summary["hit_rate"]))


def compare_runs(folders: Sequence[Path], anyway: bool = False) -> tuple[Run, list[Comparison], list[str]]:
    """The base, the others against it, and warnings. Raises UnreadableRunError, NotComparableError."""
    base, *others = _distinct([read_run(folder) for folder in folders])
    warnings: list[str] = []
    for other in others:
        grave, slight = differences(base, other)
        if grave and not anyway:
            raise NotComparableError(
                f"{base.name} and {other.name} measured different things: {'; '.join(grave)}. "
                "Compare runs of the same workload, data and model, or add --anyway"
            )
        warnings += [f"{other.name} against {base.name}: {text}" for text in (*grave, *slight)]
    return base, [compare(base, other) for other in others], warnings


def compare_and_write(folders: Sequence[Path], out: Path, console: Console, anyway: bool = False) -> Path:
    """Prints the ratios and writes a report below `out`; its path. Raises as `compare_runs` does, and OutputError."""
    base, comparisons, warnings = compare_runs(folders, anyway)
    for warning in warnings:
        console.print(f"note: {warning}", markup=False)
    console.print(_table(base, comparisons))
    folder = out / f"{datetime.now():%Y%m%d-%H%M%S}"
    number = 2
    while folder.exists():
        folder, number = out / f"{datetime.now():%Y%m%d-%H%M%S}.{number}", number + 1
    write_whole(folder, {"report.html": write_text(render_comparison(base, comparisons, warnings))})
    return folder / "report.html"


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run; the first is the base"
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/compare"), help="folder of the reports (%(default)s)")
    parser.add_argument("--anyway", action="store_true", help="compare runs of different workloads, data or models")
    options = parser.parse_args(argv)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    if len(options.runs) < 2:
        errors.print("error: a comparison needs at least two runs", markup=False)
        return 2
    console = Console(highlight=False, soft_wrap=True)
    try:
        report = compare_and_write(options.runs, options.out, console, options.anyway)
    except (UnreadableRunError, OutputError) as error:
        errors.print(f"error: {error}", markup=False)
        return 1
    except NotComparableError as error:
        errors.print(f"error: {error}", markup=False)
        return 2
    console.print(f"report: {report}")
    return 0


def latency_ratio(base: pd.Series, other: pd.Series) -> Interval:
    """other / base of the means over the programs that both have; the series are indexed by (repeat, program).

    From repeats where there are some: they alone know how much a whole run varies. Else from the programs of one run.
    """
    pairs = pd.DataFrame({"base": base, "other": other}).dropna().reset_index()
    if pairs["repeat"].nunique() > 1:
        means = pairs.groupby("repeat")[["base", "other"]].mean()
        return repeat_ratio(means["base"].to_numpy(), means["other"].to_numpy())
    return paired_ratio(pairs["base"].to_numpy(), pairs["other"].to_numpy())


def program_latencies(run: Run) -> pd.Series:
    """Seconds from a program's due time to its last call's end, by (repeat, program); failed programs left out."""
    ended = run.requests.groupby(["repeat", "program"]).agg(
        due=("arrival_s", "min"), end=("finish_s", "max"), whole=("error", lambda errors: errors.isna().all())
    )
    ended = ended[ended["whole"]]
    return ended["end"] - ended["due"]


def _by_program(run: Run, name: str) -> pd.Series:
    """Mean over a program's calls, by (repeat, program)."""
    if name == "program_latency_s":
        return program_latencies(run)
    return run.requests.dropna(subset=[name]).groupby(["repeat", "program"])[name].mean()


def _differing(base: Run, other: Run, keys: Sequence[str]) -> list[str]:
    found = []
    for key in keys:
        a, b = _look_up(base.summary, key), _look_up(other.summary, key)
        if a != b:
            found.append(f"{key.rpartition('.')[2]}: {_brief(a)} and {_brief(b)}")
    return found


def _look_up(summary: dict[str, Any], key: str) -> Any:
    value: Any = summary
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items() if item)
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _distinct(runs: list[Run]) -> list[Run]:
    """Names that tell the runs apart: the policy, and where that is not enough the folder's name."""
    names = [run.name for run in runs]
    return [run._replace(name=f"{run.name} {run.folder.name}") if names.count(run.name) > 1 else run for run in runs]


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _table(base: Run, comparisons: Sequence[Comparison]) -> Table:
    table = Table("run / base", title=f"base: {base.name}", title_justify="left")
    for comparison in comparisons:
        table.add_column(comparison.run.name, justify="right")
    for name in (*THROUGHPUTS, *LATENCIES):
        table.add_row(name, *(show_ratio(comparison.ratios[name]) for comparison in comparisons))
    return table


def show_ratio(ratio: Interval) -> str:
    """1.23 [1.20, 1.26]"""
    if ratio.value is None:
        return "–"
    bounds = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.3g}, {ratio.high:.3g}]"
    return f"{ratio.value:.3g}{bounds}"


if __name__ == "__main__":
    sys.exit(main())
