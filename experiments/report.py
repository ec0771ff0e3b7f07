"""report.html of one run: a single file that opens offline."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from experiments.plots import seconds

CAPTIONS = {
    "latency": "Latency distributions (empirical, all repeats). Times count from when a call was due. Dots mark the "
    "percentiles that the sample size supports.",
    "load": "Tokens a second by kind, and requests in the system after each step (first repeat).",
    "cache": "What fills the KV pool after each step, and the share of prompt tokens found there (first repeat).",
    "time": "Wall time by what the engine was doing, and tokens by where they came from (all repeats). Prefill, mixed "
    "and decode steps are forward passes over prompt tokens only, both, output tokens only.",
}
HEADLINE = (
    ("programs_per_s", "programs / s"),
    ("requests_per_s", "requests / s"),
    ("output_tokens_per_s", "output tokens / s"),
    ("hit_rate", "cache hit rate"),
)
LATENCY_ROWS = (
    ("ttft_s", "TTFT"),
    ("tpot_s", "TPOT"),
    ("e2e_s", "request, end to end"),
    ("program_latency_s", "program, end to end"),
)
OUTPUTS = {
    "recorded": "Outputs are recorded: each call decoded the tokens that a recorded run has there, one by one, and "
    "selects took its choices.",
    "fixed": "Outputs are fixed: the model wrote what it liked, but as many tokens as the workload says for each call, "
    "and selects took the recorded choices.",
}
COUNTS = (
    ("programs", "programs"),
    ("requests", "requests"),
    ("errors", "failed programs"),
    ("duration_s", "duration"),
    ("input_tokens", "prompt tokens"),
    ("cached_tokens", "of them from the cache"),
    ("output_tokens", "output tokens"),
    ("evicted_tokens", "evicted tokens"),
    ("refetched_tokens", "evicted, then needed again"),
    ("recomputed_tokens", "computed again after preemption"),
    ("preemptions", "preemptions"),
    ("peak_running", "most requests running at once"),
    ("pool_tokens", "KV pool, tokens"),
)
GRAMMAR_COUNTS = (
    ("forced_tokens", "output tokens that a grammar forced"),
    ("passes_saved", "forward passes that this saved"),
)
"""Shown where there are any."""


class Row(NamedTuple):
    """A line of a table."""

    name: str
    value: str
    interval: str = ""
    method: str = ""


class Chart(NamedTuple):
    """A picture inside the file."""

    name: str
    source: str
    """data: URI"""
    caption: str


def render_run(summary: Mapping[str, Any], charts: Mapping[str, bytes], config_text: str) -> str:
    """The report; `charts` are SVG files by name."""
    return template("report.html").render(
        title=f"{summary['workload']} · {summary['policy']}",
        summary=summary,
        notices=notices(summary),
        headline=[_rate_row(summary, key, name) for key, name in HEADLINE],
        latencies=[
            (name, [_latency_cell(summary, key, part) for part in ("mean", "p50", "p90", "p99")])
            for key, name in LATENCY_ROWS
        ],
        counts=[Row(name, _count(key, summary[key])) for key, name in COUNTS if summary.get(key) is not None]
        + [Row(name, _count(key, summary[key])) for key, name in GRAMMAR_COUNTS if summary.get(key)],
        overhead=_overhead(summary),
        charts=[Chart(name, data_uri(svg), CAPTIONS.get(name, "")) for name, svg in charts.items()],
        environment=[
            Row(name, "none" if value is None else str(value)) for name, value in summary["environment"].items()
        ],
        config_text=config_text,
    )


def notices(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the figures."""
    found = []
    if summary["data"]["source"] == "sample":
        found.append(
            f"Built-in sample data, not the published set: {summary['data']['note'] or 'made by our own code'}."
        )
    if summary["random_weights"]:
        found.append(
            "Random weights: speed and cache behaviour are real, the answers mean nothing, so no score is given."
        )
    if (said := OUTPUTS.get(summary.get("outputs", "free"))) is not None:
        found.append(said)
    if summary["errors"]:
        found.append(
            f"{summary['errors']} of {summary['programs']} programs failed; they count in no latency and no throughput."
        )
    if summary["repeats"] == 1:
        found.append("One run: no interval for throughput; the others say how far the programs differ. Use repeats=N.")
    late = summary["lateness_s"]["max"] or 0.0
    if summary["load"]["rate"] is not None:
        served = (summary["programs_per_s"] or 0.0) / summary["load"]["rate"]
        if served < 0.9:
            found.append(
                f"The system didn't keep up: {number(summary['programs_per_s'])} programs/s served where "
                f"{number(summary['load']['rate'])} were due. Latencies then grow with the length of the run."
            )
        mean = summary["lateness_s"]["mean"] or 0.0
        found.append(
            f"Programs were started up to {seconds(late)} after they were due ({seconds(mean)} on average): "
            "starts happen between steps. Latencies count from the due time."
        )
    return found


def template(name: str) -> Any:
    """A template of this folder, with the shared style."""
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def data_uri(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def number(value: float | None, key: str = "") -> str:
    """A figure as a reader wants it: three or four digits, `–` for none."""
    if value is None:
        return "–"
    if key == "hit_rate":
        return f"{100 * value:.1f} %"
    if key.endswith("_s") and not key.endswith("per_s"):
        return seconds(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _rate_row(summary: Mapping[str, Any], key: str, name: str) -> Row:
    interval = summary["intervals"].get(key, {})
    return Row(name, number(summary[key], key), _bounds(interval, key), str(interval.get("method", "")))


def _latency_cell(summary: Mapping[str, Any], key: str, part: str) -> Row:
    interval = summary["intervals"].get(f"{key}.{part}", {})
    return Row(part, number(summary[key][part], key), _bounds(interval, key), str(interval.get("method", "")))


def _bounds(interval: Mapping[str, Any], key: str) -> str:
    if interval.get("low") is None or interval.get("high") is None:
        return ""
    return f"{number(interval['low'], key)} to {number(interval['high'], key)}"


def _count(key: str, value: float) -> str:
    return seconds(value) if key == "duration_s" else f"{value:,.0f}"


def _overhead(summary: Mapping[str, Any]) -> list[Row]:
    parts: Mapping[str, float] = summary["overhead"]
    whole = sum(parts.values())
    names = {
        "schedule_s": "scheduling",
        "cache_s": "cache",
        "forward_s": "forward pass",
        "other_s": "sampling, text, rest",
    }
    return [
        Row(names.get(key, key), seconds(value), f"{100 * value / whole:.3g} % of step time" if whole else "")
        for key, value in parts.items()
    ]
