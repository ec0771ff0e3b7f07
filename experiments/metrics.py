"""Tables of programs and requests, and the figures of a run. Definitions: one place, here.

- due: when a program was to start, or a later call of it was made. Latencies count from there, not from the sending.
- TTFT: first output token - due. TPOT: (last token - first token) / (output tokens - 1). E2E: finished - due.
- hit rate: cached prompt tokens / prompt tokens, of admitted requests, once a request.
- Requests that only score a continuation have no output token: no TTFT, no TPOT. Failed requests have no latency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from experiments.statistics import (
    Interval,
    bootstrap_interval,
    finite,
    mean_interval,
    paired_ratio,
    percentile,
    percentile_interval,
)

if TYPE_CHECKING:
    from engine.constraints.session import Constraint
    from engine.request import Request
    from lang.runner import ProgramRun
    from workloads.base import Score

LATENCIES = ("ttft_s", "tpot_s", "e2e_s", "program_latency_s")
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
RATES = ("programs_per_s", "requests_per_s", "output_tokens_per_s", "hit_rate")
PERCENTILE_RULE = (
    "a percentile is given where a distribution-free 95 % interval exists, counting the samples of one run: "
    "6 for p50, 36 for p90, 368 for p99"
)

REQUEST_COLUMNS = {
    "repeat": "int64",
    "program": "str",
    "call": "int64",
    "variable": "str",
    "request": "int64",
    "client": "str",
    "arrival_s": "float64",
    "sent_s": "float64",
    "admitted_s": "float64",
    "first_token_s": "float64",
    "finish_s": "float64",
    "input_tokens": "int64",
    "cached_tokens": "int64",
    "output_tokens": "int64",
    "recomputed_tokens": "int64",
    "preemptions": "int64",
    "forced_tokens": "int64",
    "passes_saved": "int64",
    "mask_s": "float64",
    "compile_s": "float64",
    "ttft_s": "float64",
    "tpot_s": "float64",
    "e2e_s": "float64",
    "finish_reason": "str",
    "error": "str",
}
"""Times are seconds since the start of the repeat. Missing times are NaN. What a grammar did is 0 where there was none:
output tokens that it forced, forward passes that this saved, seconds of computing masks and of compiling it."""
CONSTRAINT_COLUMNS = ("forced_tokens", "passes_saved", "mask_s", "compile_s")
PROGRAM_COLUMNS = {
    "repeat": "int64",
    "program": "str",
    "client": "str",
    "due_s": "float64",
    "start_s": "float64",
    "finish_s": "float64",
    "lateness_s": "float64",
    "program_latency_s": "float64",
    "calls": "int64",
    "error": "str",
}


class Totals(NamedTuple):
    """What the system counted in one repeat, and where its time went (seconds)."""

    evicted_tokens: int = 0
    refetched_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    peak_running: int = 0
    images_encoded: int = 0
    images_found: int = 0
    schedule_s: float = 0.0
    cache_s: float = 0.0
    forward_s: float = 0.0
    other_s: float = 0.0


class Measured(NamedTuple):
    """Everything one repeat left."""

    repeat: int
    duration_s: float
    """From the first program's due time (the start of the loop) to the end of the last one."""
    requests: pd.DataFrame
    programs: pd.DataFrame
    steps: pd.DataFrame
    """A row a step, in the columns of `engine.metrics.StepSample`; times since the start of the repeat."""
    totals: Totals
    score: Score | None


def program_table(runs: Iterable[ProgramRun], origin: float, repeat: int) -> pd.DataFrame:
    """A row a program. `origin`: seconds on the clock at which the repeat began."""
    rows = []
    for run in runs:
        finish = math.nan if run.finished_at is None else run.finished_at - origin
        failed = run.status != "done"
        due = run.started_at if run.due is None else run.due
        rows.append(
            (
                repeat,
                run.name,
                run.client,
                due - origin,
                run.started_at - origin,
                finish,
                max(0.0, run.started_at - due),
                math.nan if failed else finish - (due - origin),
                len(run.calls),
                _reason(run) if failed else None,
            )
        )
    return _table(rows, PROGRAM_COLUMNS)


def request_table(runs: Iterable[ProgramRun], origin: float, repeat: int) -> pd.DataFrame:
    """A row a request, in the order of programs, calls and samples."""
    rows = [
        _request_row(repeat, run.name, number, call.name, request, origin)
        for run in runs
        for number, call in enumerate(run.calls)
        for request in call.requests
    ]
    return _table(rows, REQUEST_COLUMNS)


def summarise(measured: Sequence[Measured]) -> dict[str, Any]:
    """The figures of summary.json that come from the measurement itself.

    Counts and seconds are sums over the repeats, rates are sums over sums, latencies are over all repeats' samples;
    `by_repeat` has each repeat alone.
    """
    figures = _figures(measured)
    figures["intervals"] = {name: interval.record() for name, interval in intervals(measured).items()}
    figures["percentile_rule"] = PERCENTILE_RULE
    figures["by_repeat"] = [_figures([one]) for one in measured]
    return figures


def intervals(measured: Sequence[Measured]) -> dict[str, Interval]:
    """95 % intervals of rates, latency means and percentiles: t over repeats, else bootstrap over programs.

    A single run's throughput has none: its programs ran side by side and are no independent samples of it.
    """
    found: dict[str, Interval] = {}
    alone = [_figures([one]) for one in measured]
    for name in RATES:
        if len(measured) > 1:
            found[name] = mean_interval([_or_nan(figures[name]) for figures in alone])
        elif name == "hit_rate":
            found[name] = _hit_rate_interval(measured[0].requests)
        else:
            found[name] = Interval(alone[0][name], None, None, 1, "one run: repeat it for an interval")
    for name in LATENCIES:
        for part, q in {"mean": None, **QUANTILES}.items():
            key = f"{name}.{part}"
            if len(measured) > 1:
                found[key] = mean_interval([_or_nan(figures[name][part]) for figures in alone])
                continue
            table = _latency_table(measured[0], name)
            if q is not None and name == "program_latency_s":
                found[key] = percentile_interval(table[name].to_numpy(), q)
            else:
                found[key] = bootstrap_interval(table[name].to_numpy(), table["program"].to_numpy(), q)
    return found


def _figures(measured: Sequence[Measured]) -> dict[str, Any]:
    requests = pd.concat([one.requests for one in measured], ignore_index=True)
    programs = pd.concat([one.programs for one in measured], ignore_index=True)
    duration = sum(one.duration_s for one in measured)
    admitted = requests[requests["admitted_s"].notna()]
    n_programs = int(programs["error"].isna().sum())
    n_requests = int(requests["error"].isna().sum())
    input_tokens, cached = int(admitted["input_tokens"].sum()), int(admitted["cached_tokens"].sum())
    output = int(requests["output_tokens"].sum())
    totals = [one.totals for one in measured]
    figures: dict[str, Any] = {
        "programs": len(programs),
        "requests": len(requests),
        "duration_s": duration,
        "programs_per_s": _divide(n_programs, duration),
        "requests_per_s": _divide(n_requests, duration),
        "input_tokens": input_tokens,
        "cached_tokens": cached,
        "output_tokens": output,
        "output_tokens_per_s": _divide(output, duration),
        "hit_rate": _divide(cached, input_tokens),
    }
    for name in LATENCIES:
        figures[name] = _distribution([_latency_table(one, name)[name].to_numpy() for one in measured])
    figures |= {
        name: sum(getattr(one, name) for one in totals)
        for name in (
            *("evicted_tokens", "refetched_tokens", "recomputed_tokens", "preemptions"),
            *("images_encoded", "images_found"),
        )
    }
    figures |= {name: requests[name].to_numpy().sum().item() for name in CONSTRAINT_COLUMNS}
    figures["errors"] = int(programs["error"].notna().sum())
    figures["peak_running"] = max((one.peak_running for one in totals), default=0)
    figures["lateness_s"] = {"mean": _mean(programs["lateness_s"]), "max": _largest(programs["lateness_s"])}
    figures["overhead"] = {
        name: sum(getattr(one, name) for one in totals) for name in ("schedule_s", "cache_s", "forward_s", "other_s")
    }
    figures["score"] = _score([one.score for one in measured])
    return figures


def _request_row(repeat: int, program: str, number: int, variable: str | None, r: Request, origin: float) -> tuple:
    times = r.token_times
    failed = (
        r.error is not None
        or r.finished_at is None
        or (r.finish_reason is not None and r.finish_reason.value == "abort")
    )
    first = times[0] if times else math.nan
    tpot = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else math.nan
    finish = math.nan if r.finished_at is None else r.finished_at
    return (
        repeat,
        program,
        number,
        variable,
        r.id,
        r.client,
        r.arrival - origin,
        r.added_at - origin,
        math.nan if r.admitted_at is None else r.admitted_at - origin,
        first - origin,
        finish - origin,
        r.prompt_tokens,
        r.n_cached,
        r.output_tokens,
        r.n_recomputed,
        r.preemptions,
        *((0, 0, 0.0, 0.0) if r.constraint is None else _constraint_figures(r.constraint)),
        math.nan if failed else first - r.arrival,
        math.nan if failed else tpot,
        math.nan if failed else finish - r.arrival,
        None if r.finish_reason is None else r.finish_reason.value,
        r.error,
    )


def _constraint_figures(constraint: Constraint) -> tuple[int, int, float, float]:
    return constraint.forced_tokens, constraint.passes_saved, constraint.mask_s, constraint.compile_s


def _reason(run: ProgramRun) -> str:
    """Why a program failed, and its own line where it did."""
    error = f"{type(run.error).__name__}: {run.error}" if run.error is not None else run.status
    return f"{error} ({run.where})" if run.where else error


def _table(rows: list[tuple], columns: dict[str, str]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(columns))
    return table.astype({name: kind for name, kind in columns.items() if kind != "str"}).astype(
        {name: "object" for name, kind in columns.items() if kind == "str"}
    )


def _latency_table(one: Measured, name: str) -> pd.DataFrame:
    table = one.programs if name == "program_latency_s" else one.requests
    return table[table[name].notna()]


def _distribution(parts: list[np.ndarray]) -> dict[str, float | None]:
    """Over all samples; a percentile only where each repeat alone supports it."""
    pooled = np.concatenate(parts) if parts else np.empty(0)
    found: dict[str, float | None] = {"mean": float(pooled.mean()) if len(pooled) else None}
    for name, q in QUANTILES.items():
        supported = all(percentile(part, q) is not None for part in parts)
        found[name] = percentile(pooled, q) if supported else None
    return found


def _hit_rate_interval(requests: pd.DataFrame) -> Interval:
    """Of the ratio of sums, programs drawn with replacement."""
    admitted = requests[requests["admitted_s"].notna()]
    sums = admitted.groupby("program")[["input_tokens", "cached_tokens"]].sum()
    ratio = paired_ratio(sums["input_tokens"].to_numpy(np.float64), sums["cached_tokens"].to_numpy(np.float64))
    return ratio._replace(method="bootstrap over programs")


def _score(scores: Sequence[Score | None]) -> dict[str, Any] | None:
    """The mean over repeats of the same score, or None."""
    given = [score for score in scores if score is not None]
    if not given:
        return None
    return {"name": given[0].name, "value": float(np.mean([score.value for score in given])), "n": given[0].n}


def _mean(values: pd.Series) -> float | None:
    sample = finite(values.to_numpy(np.float64))
    return float(sample.mean()) if len(sample) else None


def _largest(values: pd.Series) -> float | None:
    sample = finite(values.to_numpy(np.float64))
    return float(sample.max()) if len(sample) else None


def _divide(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
