"""The charts of a run. Light, labelled with units, in colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from experiments.metrics import Measured
from experiments.statistics import needed_samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito, Color Universal Design (2008)
BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#9A9A9A"
CYCLE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, "#000000")
LATENCY_NAMES = {
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "e2e_s": "request, end to end",
    "program_latency_s": "program, end to end",
}
POINTS = 600
"""Most points of a line over time: more can't be told apart on paper."""
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "radixlab",
}


def draw(measured: Sequence[Measured], pool_tokens: int | None) -> dict[str, Figure]:
    """The figures of a run by name; one whose data are missing is left out."""
    first = measured[0]
    with style():
        figures = {"latency": latency(measured)}
        if len(first.steps):
            figures["load"] = load_over_time(first)
            figures["cache"] = cache_over_time(first, pool_tokens)
            figures["time"] = where_time_goes(measured)
    return figures


@contextmanager
def style() -> Iterator[None]:
    """The look of all charts; no window, whatever the machine."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(STYLE):
        yield


def png(figure: Figure) -> bytes:
    return _save(figure, "png", dpi=160)


def svg(figure: Figure) -> bytes:
    return _save(figure, "svg", metadata={"Date": None})


def latency(measured: Sequence[Measured]) -> Figure:
    """Cumulative distributions of TTFT, TPOT, end-to-end and program latency, one panel each."""
    figure, axes = _figure(2, 2, height=4.6)
    for ax, (name, title) in zip(axes.flat, LATENCY_NAMES.items()):
        tables = [one.programs if name == "program_latency_s" else one.requests for one in measured]
        parts = [table[name].dropna().to_numpy(np.float64) for table in tables]
        ecdf(ax, np.concatenate(parts), BLUE, markers=min(map(len, parts)))
        scale_seconds(ax, parts)
        ax.set_title(title)
        ax.set_xlabel("seconds")
        ax.set_ylabel("fraction below")
    return figure


def ecdf(ax: Axes, values: np.ndarray, color: str, label: str | None = None, markers: int = 0) -> None:
    """Empirical distribution function; `markers`: sample size that decides which percentiles are marked."""
    ordered = np.sort(values)
    ax.set_ylim(0, 1.03)
    if not len(ordered):
        ax.text(0.5, 0.5, "no samples", transform=ax.transAxes, ha="center", color=GREY)
        return
    ax.step(
        np.r_[ordered[0], ordered],
        np.r_[0, np.arange(1, len(ordered) + 1) / len(ordered)],
        where="post",
        color=color,
        label=label,
    )
    for text, q in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        if markers >= needed_samples(q):
            x = float(np.quantile(ordered, q))
            ax.plot([x], [q], "o", color=RED, markersize=4, zorder=3)
            ax.annotate(
                f"{text} {seconds(x)}",
                (x, q),
                xytext=(6, -9),
                textcoords="offset points",
                fontsize=7.5,
                color="#333333",
            )


def load_over_time(one: Measured) -> Figure:
    """Prompt tokens a second, output tokens a second, requests that run and wait."""
    decodes = bool(one.steps["n_decode"].sum())
    figure, axes = _figure(2 + decodes, 1, height=3.6 + 1.6 * decodes, sharex=True)
    prompts, outputs, requests = axes[0], axes[1] if decodes else None, axes[-1]
    lines = [("n_cached", "from the cache", SKY, prompts), ("n_prefill", "computed", BLUE, prompts)]
    if outputs is not None:
        lines.append(("n_decode", "decoded", ORANGE, outputs))
        outputs.set_title("output tokens after each request's first")
    for column, label, color, ax in lines:
        edges, tokens = _binned(one, column)
        ax.stairs(tokens / np.diff(edges), edges, color=color, label=label, linewidth=1.4)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("tokens / s")
    prompts.set_title("prompt tokens")
    _legend(prompts, 2)
    shown = _thin(one.steps)
    requests.step(shown["time"], shown["running"], where="post", color=GREEN, label="running")
    requests.step(shown["time"], shown["waiting"], where="post", color=RED, label="waiting")
    requests.set_ylim(bottom=0)
    requests.set_xlim(0, one.duration_s)
    requests.set_ylabel("requests")
    requests.set_xlabel("seconds since the start")
    requests.set_title("requests in the system")
    _legend(requests, 2)
    return figure


def cache_over_time(one: Measured, pool_tokens: int | None) -> Figure:
    """What fills the KV pool above, hit rate below."""
    figure, (top, bottom) = _figure(2, 1, height=4.4, sharex=True)
    shown = _thin(one.steps)
    time = shown["time"].to_numpy(np.float64)
    cached, evictable = shown["cached_tokens"].to_numpy(), shown["evictable_tokens"].to_numpy()
    free = shown["free_tokens"].to_numpy()
    pool = pool_tokens if pool_tokens is not None else int((cached + free).max())
    held = np.maximum(pool - free - cached, 0)
    parts = (
        (held, "requests' own", ORANGE),
        (cached - evictable, "cached, in use", BLUE),
        (evictable, "cached, evictable", SKY),
        (free, "free", "#EFEFEF"),
    )
    scale, unit = (1e3, "thousand tokens") if pool >= 10_000 else (1.0, "tokens")
    top.stackplot(
        time,
        *(part / scale for part, _, _ in parts),
        labels=[p[1] for p in parts],
        colors=[p[2] for p in parts],
        step="post",
    )
    top.set_ylim(0, pool / scale)
    top.set_ylabel(unit)
    top.set_title("KV pool")
    _legend(top, 4)
    edges, window_hits = _binned(one, "n_cached")
    _, window_computed = _binned(one, "n_prefill")
    hits, computed = (one.steps[name].to_numpy(np.float64).cumsum() for name in ("n_cached", "n_prefill"))
    with np.errstate(invalid="ignore", divide="ignore"):
        window, so_far = 100 * window_hits / (window_hits + window_computed), 100 * hits / (hits + computed)
    bottom.plot((edges[:-1] + edges[1:]) / 2, window, ".", color=SKY, markersize=5, label="of each interval's prompts")
    bottom.plot(one.steps["time"], so_far, color=BLUE, label="so far")
    bottom.set_ylim(0, 103)
    bottom.set_xlim(0, one.duration_s)
    bottom.set_ylabel("prompt tokens\nfrom the cache (%)")
    bottom.set_xlabel("seconds since the start")
    bottom.set_title("hit rate")
    _legend(bottom, 2)
    return figure


def where_time_goes(measured: Sequence[Measured]) -> Figure:
    """Wall time by what the engine did, and prompt tokens by where they came from."""
    figure, (top, bottom) = _figure(2, 1, height=2.9)
    steps = pd.concat([one.steps for one in measured])
    prefill, decode = steps["n_prefill"] > 0, steps["n_decode"] > 0
    forward = steps["forward_s"]
    spent = {
        "prefill steps": (float(forward[prefill & ~decode].sum()), BLUE),
        "mixed steps": (float(forward[prefill & decode].sum()), SKY),
        "decode steps": (float(forward[decode & ~prefill].sum()), ORANGE),
        "schedule": (float(steps["schedule_s"].sum()), GREEN),
        "cache": (float(steps["cache_s"].sum()), RED),
        "sampling, text": (float(steps["other_s"].sum()), PINK),
    }
    wall = sum(one.duration_s for one in measured)
    spent["programs, client, idle"] = (max(0.0, wall - sum(value for value, _ in spent.values())), "#DDDDDD")
    _bar(top, spent, "% of the wall time", "where the time goes")
    requests = pd.concat([one.requests for one in measured])
    admitted = requests[requests["admitted_s"].notna()]
    cached, prompt = float(admitted["cached_tokens"].sum()), float(admitted["input_tokens"].sum())
    tokens = {
        "prompt, from the cache": (cached, SKY),
        "prompt, computed": (prompt - cached, BLUE),
        "computed again": (float(sum(one.totals.recomputed_tokens for one in measured)), RED),
        "output": (float(requests["output_tokens"].sum()), ORANGE),
    }
    _bar(bottom, tokens, "% of all tokens", "where the tokens come from")
    return figure


def seconds(value: float) -> str:
    """A duration with a fitting unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return "0 s" if value == 0 else f"{value / 1e-6:.3g} µs"


def _bar(ax: Axes, parts: dict[str, tuple[float, str]], xlabel: str, title: str) -> None:
    whole = sum(value for value, _ in parts.values()) or 1.0
    left = 0.0
    for name, (value, color) in parts.items():
        share = 100 * value / whole
        ax.barh(
            [0], [share], left=[left], color=color, edgecolor="white", linewidth=0.8, label=f"{name}  {share:.3g} %"
        )
        left += share
    ax.set_xlim(0, 100)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    ax.set_xlabel(xlabel)
    ax.set_title(title)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=7.5, handlelength=1)


def _figure(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, height), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def _legend(ax: Axes, columns: int) -> None:
    ax.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=columns,
        borderaxespad=0.1,
        handlelength=1.4,
        columnspacing=1.2,
    )


def scale_seconds(ax: Axes, samples: Sequence[np.ndarray]) -> None:
    """A logarithmic axis where the samples span more than a factor of 30, else one from 0. After all is drawn."""
    values = np.concatenate([*samples, np.empty(0)])
    if not len(values):
        return
    if values.min() > 0 and values.max() / values.min() > 30:
        ax.set_xscale("log")
    else:
        ax.set_xlim(0, values.max() * 1.05 or 1.0)


def _binned(one: Measured, column: str) -> tuple[np.ndarray, np.ndarray]:
    """Edges of equal intervals over the run, seconds, and the column's sum in each."""
    edges = np.linspace(0, max(one.duration_s, 1e-9), int(np.clip(len(one.steps) // 2, 1, 60)) + 1)
    ends, values = one.steps["time"].to_numpy(np.float64), one.steps[column].to_numpy(np.float64)
    return edges, np.histogram(ends, edges, weights=values)[0]


def _thin(steps: pd.DataFrame) -> pd.DataFrame:
    """Every k-th row, the last one always."""
    if len(steps) <= POINTS:
        return steps
    index = np.unique(np.linspace(0, len(steps) - 1, POINTS).astype(int))
    return steps.iloc[index]


def _save(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
