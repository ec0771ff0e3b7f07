"""Definitions of the figures, on tables made by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from engine.metrics import StepSample
from experiments.metrics import Measured, Totals, program_table, request_table, summarise


def measured(
    runs: list[Any], duration: float = 10.0, repeat: int = 0, origin: float = 100.0, **fields: Any
) -> Measured:
    return Measured(
        repeat=repeat,
        duration_s=duration,
        requests=request_table(runs, origin, repeat),
        programs=program_table(runs, origin, repeat),
        steps=pd.DataFrame(columns=list(StepSample._fields)),
        totals=fields.get("totals", Totals()),
        score=fields.get("score"),
    )


def test_latencies_count_from_the_due_time_and_token_times(make_request: Any, program_run: Any) -> None:
    request = make_request(arrival=101.0, token_times=[103.0, 103.5, 105.0], finished_at=105.2)
    request.added_at = 102.0  # sent late
    row = request_table([program_run("p", 101.0, 102.0, 105.3, [request])], 100.0, 0).iloc[0]
    assert row["arrival_s"] == 1.0
    assert row["sent_s"] == 2.0
    assert row["ttft_s"] == pytest.approx(2.0)
    assert row["tpot_s"] == pytest.approx((105.0 - 103.0) / 2)
    assert row["e2e_s"] == pytest.approx(4.2)
    program = program_table([program_run("p", 101.0, 102.0, 105.3, [request])], 100.0, 0).iloc[0]
    assert program["program_latency_s"] == pytest.approx(4.3)
    assert program["lateness_s"] == pytest.approx(1.0)


def test_one_output_token_has_no_tpot_and_a_scored_text_no_ttft(make_request: Any, program_run: Any) -> None:
    one = make_request(arrival=100.0, token_times=[101.0])
    scored = make_request(arrival=100.0, token_times=[], finished_at=101.0)
    table = request_table([program_run("p", 100.0, 100.0, 101.0, [one, scored])], 100.0, 0)
    assert table["ttft_s"].tolist()[0] == 1.0
    assert math.isnan(table["ttft_s"][1])
    assert table["tpot_s"].isna().all()
    assert table["e2e_s"].tolist() == [1.0, 1.0]


def test_hit_rate_is_cached_over_prompt_tokens_of_admitted_requests(make_request: Any, program_run: Any) -> None:
    requests = [
        make_request(arrival=100.0, token_times=[101.0], prompt=100, cached=30),
        make_request(arrival=100.0, token_times=[101.0], prompt=300, cached=270),
        make_request(arrival=100.0, token_times=[], prompt=999, admitted=False, error="refused"),
    ]
    figures = summarise([measured([program_run("p", 100.0, 100.0, 101.0, requests)])])
    assert (figures["input_tokens"], figures["cached_tokens"]) == (400, 300)
    assert figures["hit_rate"] == 0.75


def test_what_grammars_did_stands_by_request_and_in_total(make_request: Any, program_run: Any) -> None:
    plain, constrained = (make_request(arrival=100.0, token_times=[101.0, 102.0]) for _ in range(2))
    constrained.constraint = SimpleNamespace(forced_tokens=7, passes_saved=5, mask_s=0.25, compile_s=0.5)
    one = measured([program_run("a", 100.0, 100.0, 102.0, [plain, constrained, constrained])])
    columns = ["forced_tokens", "passes_saved", "mask_s", "compile_s"]
    assert one.requests[columns].to_numpy().tolist() == [[0, 0, 0, 0], [7, 5, 0.25, 0.5], [7, 5, 0.25, 0.5]]
    assert [summarise([one, one])[name] for name in columns] == [28, 20, 1.0, 2.0]


def test_failed_programs_count_as_errors_not_as_throughput(make_request: Any, program_run: Any) -> None:
    good = program_run("a", 100.0, 100.0, 102.0, [make_request(arrival=100.0, token_times=[101.0, 102.0])])
    broken = make_request(arrival=100.0, token_times=[100.1], error="too long")
    bad = program_run("b", 100.0, 100.0, 100.2, [broken], status="failed", error=ValueError("too long"), where="x.py:3")
    one = measured([good, bad], duration=4.0)
    figures = summarise([one])
    assert (figures["programs"], figures["errors"]) == (2, 1)
    assert figures["programs_per_s"] == 0.25
    assert figures["ttft_s"]["mean"] == 1.0
    assert figures["program_latency_s"]["mean"] == 2.0
    assert one.programs["error"][1] == "ValueError: too long (x.py:3)"


def test_percentiles_need_samples_and_repeats_do_not_make_up_for_them(make_request: Any, program_run: Any) -> None:
    def one(n: int, repeat: int) -> Measured:
        runs = [
            program_run(f"p{i}", 100.0, 100.0, 101.0 + i, [make_request(arrival=100.0, token_times=[101.0 + i])])
            for i in range(n)
        ]
        return measured(runs, repeat=repeat)

    ttft = summarise([one(35, 0)])["ttft_s"]
    assert (ttft["p50"], ttft["p90"], ttft["p99"]) == (18.0, None, None)
    assert summarise([one(36, 0)])["ttft_s"]["p90"] == pytest.approx(32.5)
    assert summarise([one(35, 0), one(35, 1)])["ttft_s"]["p90"] is None


def test_rates_of_repeats_are_sums_over_sums_with_t_intervals(make_request: Any, program_run: Any) -> None:
    def one(repeat: int, duration: float) -> Measured:
        runs = [program_run("p", 100.0, 100.0, 101.0, [make_request(arrival=100.0, token_times=[101.0])])]
        return measured(runs, duration, repeat, totals=Totals(evicted_tokens=5, peak_running=repeat, forward_s=1.0))

    figures = summarise([one(0, 1.0), one(1, 3.0)])
    assert figures["programs_per_s"] == 0.5
    assert figures["duration_s"] == 4.0
    assert figures["evicted_tokens"] == 10
    assert figures["peak_running"] == 1
    assert figures["overhead"]["forward_s"] == 2.0
    assert [part["programs_per_s"] for part in figures["by_repeat"]] == [1.0, pytest.approx(1 / 3)]
    interval = figures["intervals"]["programs_per_s"]
    assert interval["value"] == pytest.approx(2 / 3)
    assert interval["n"] == 2
    assert summarise([one(0, 1.0)])["intervals"]["programs_per_s"]["low"] is None


def test_a_run_without_a_single_request_still_has_a_summary() -> None:
    figures = summarise([measured([], duration=0.0)])
    assert figures["hit_rate"] is None
    assert figures["programs_per_s"] is None
    assert figures["ttft_s"] == {"mean": None, "p50": None, "p90": None, "p99": None}
