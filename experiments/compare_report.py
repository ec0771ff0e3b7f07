"""The report of a comparison: forest plot of ratios, distributions side by side, tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments import plots
from experiments.report import Chart, data_uri, number, template

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.compare import Comparison, Run

RATIO_NAMES = {
    "programs_per_s": "programs / s",
    "output_tokens_per_s": "output tokens / s",
    **plots.LATENCY_NAMES,
}
HIGHER_IS_BETTER = ("programs_per_s", "output_tokens_per_s")


def render_comparison(base: Run, comparisons: Sequence[Comparison], warnings: Sequence[str]) -> str:
    """One HTML file."""
    from experiments.compare import show_ratio

    runs = [base, *(comparison.run for comparison in comparisons)]
    with plots.style():
        figures = {
            "ratios": (
                forest(base, comparisons),
                "Ratios to the base with 95 % intervals. Blue: better, vermilion: worse, "
                "grey: the interval holds 1 or there is none. "
                "An arrow: the interval goes on beyond the edge.",
            ),
            "latency": (distributions(runs), "Latency distributions (empirical, all repeats)."),
        }
    charts = [Chart(name, data_uri(plots.svg(figure)), caption) for name, (figure, caption) in figures.items()]
    names = ("programs_per_s", "output_tokens_per_s", "hit_rate", "evicted_tokens", "peak_running", "errors")
    return template("compare.html").render(
        title=f"{base.summary['workload']}: {', '.join(run.name for run in runs)}",
        base=base,
        runs=runs,
        warnings=warnings,
        charts=charts,
        ratios=[
            (title, [show_ratio(c.ratios[name]) for c in comparisons], _methods(comparisons, name))
            for name, title in RATIO_NAMES.items()
        ],
        absolute=[
            (name.replace("_per_s", " / s").replace("_", " "), [number(run.summary[name], name) for run in runs])
            for name in names
        ],
    )


def forest(base: Run, comparisons: Sequence[Comparison]) -> Figure:
    """Each metric's ratio and interval, a line each, on a logarithmic axis."""
    from matplotlib.figure import Figure

    rows = len(RATIO_NAMES) * (len(comparisons) + 1)
    figure = Figure(figsize=(7.2, 0.9 + 0.2 * rows), layout="constrained")
    ax = figure.subplots()
    ticks, labels = [], []
    values = [r.value for c in comparisons for r in c.ratios.values() if r.value is not None and r.value > 0]
    left, right = min([1.0, *values]) / 2, max([1.0, *values]) * 2
    for i, (name, title) in enumerate(RATIO_NAMES.items()):
        top = -i * (len(comparisons) + 1.0)
        ticks.append(top - (len(comparisons) - 1) / 2)
        labels.append(title)
        for j, comparison in enumerate(comparisons):
            ratio = comparison.ratios[name]
            if ratio.value is None or ratio.value <= 0:
                continue
            color, y = _color(name, ratio.low, ratio.high), top - j
            if ratio.low is not None and ratio.high is not None:
                ax.plot([max(ratio.low, left), min(ratio.high, right)], [y, y], color=color, linewidth=2)
                for bound, edge, marker in ((ratio.low, left, "<"), (ratio.high, right, ">")):
                    if bound < left or bound > right:  # it goes on beyond the edge
                        ax.plot([edge], [y], marker, color=color, markersize=5, clip_on=False)
            ax.plot([ratio.value], [y], "o", color=color, markersize=4.5)
            ax.annotate(comparison.run.name, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7.5)
    ax.axvline(1, color="#555555", linewidth=0.9)
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    ax.minorticks_off()
    steps = (1, 2, 5) if right / left < 1000 else (1,)
    marks = [m * 10.0**power for power in range(-6, 7) for m in steps if left <= m * 10.0**power <= right]
    ax.set_xticks(marks, [f"{mark:g}" for mark in marks])
    ax.set_yticks(ticks, labels)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"ratio to {base.name} (log scale)")
    return figure


def distributions(runs: Sequence[Run]) -> Figure:
    """Cumulative distributions of the latencies, a colour a run."""
    from matplotlib.figure import Figure

    from experiments.compare import LATENCIES, program_latencies

    figure = Figure(figsize=(7.2, 4.9), layout="constrained")
    axes = figure.subplots(2, 2)
    for ax, name in zip(axes.flat, LATENCIES):
        found = []
        for color, run in zip(_colors(len(runs)), runs):
            values = program_latencies(run) if name == "program_latency_s" else run.requests[name]
            sample = values.dropna().to_numpy(np.float64)
            found.append(sample)
            plots.ecdf(ax, sample, color, run.name)
        plots.scale_seconds(ax, found)
        ax.set_title(plots.LATENCY_NAMES[name])
        ax.set_xlabel("seconds")
        ax.set_ylabel("fraction below")
    handles, labels = axes.flat[-1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(runs)))
    return figure


def _colors(n: int) -> list[str]:
    return [plots.CYCLE[i % len(plots.CYCLE)] for i in range(n)]


def _color(name: str, low: float | None, high: float | None) -> str:
    if low is None or high is None or low <= 1 <= high:
        return plots.GREY
    return plots.BLUE if (low > 1) == (name in HIGHER_IS_BETTER) else plots.RED


def _methods(comparisons: Sequence[Comparison], name: str) -> str:
    return comparisons[0].ratios[name].method if comparisons else ""
