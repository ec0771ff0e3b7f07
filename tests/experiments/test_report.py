"""What a report says before its figures, and how it writes numbers."""

from __future__ import annotations

from typing import Any

import pytest

from experiments.plots import seconds
from experiments.report import notices, number


def summary(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "data": {"source": "files", "note": ""}, "random_weights": False, "errors": 0, "programs": 10, "repeats": 3,
        "lateness_s": {"mean": 0.1, "max": 0.5}, "load": {"rate": None}, "programs_per_s": 4.0,
    }  # fmt: skip
    return base | changes


def test_a_plain_run_needs_no_notice() -> None:
    assert notices(summary()) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"source": "sample", "note": "made here"}}, "Built-in sample data"),
        ({"random_weights": True}, "no score is given"),
        ({"errors": 3}, "3 of 10 programs failed"),
        ({"repeats": 1}, "no interval for throughput"),
        ({"load": {"rate": 4.0}}, "up to 500 ms after they were due"),
    ],
)
def test_what_weakens_the_figures_is_said_first(changes: dict[str, Any], says: str) -> None:
    (notice,) = notices(summary(**changes))
    assert says in notice


def test_an_overloaded_open_loop_is_called_so() -> None:
    assert any(
        "didn't keep up: 4 programs/s served where 10 were due" in n for n in notices(summary(load={"rate": 10.0}))
    )


def test_numbers_carry_their_units() -> None:
    assert [seconds(x) for x in (2.0, 0.0123, 4.2e-5, 0.0)] == ["2 s", "12.3 ms", "42 µs", "0 s"]
    assert [number(None), number(0.1234, "hit_rate"), number(0.5, "ttft_s"), number(12345.6)] == [
        "–",
        "12.3 %",
        "500 ms",
        "12,346",
    ]
