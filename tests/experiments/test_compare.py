"""Ratios of runs that were made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.compare import Run, compare, differences
from experiments.compare_report import render_comparison


def run_of(name: str, ttft: np.ndarray, programs_per_s: list[float], **summary: Any) -> Run:
    """ttft: seconds [repeats, programs]; every program is one call, due at 0."""
    repeats, n = ttft.shape
    table = pd.DataFrame(
        {
            "repeat": np.repeat(range(repeats), n),
            "program": [f"p{i}" for i in range(n)] * repeats,
            "call": 0,
            "arrival_s": 0.0,
            "finish_s": ttft.ravel() + 1.0,
            "ttft_s": ttft.ravel(),
            "tpot_s": np.nan,
            "e2e_s": ttft.ravel() + 1.0,
            "error": None,
        }
    )
    base = {
        "workload": "w", "policy": name, "model": "tiny", "random_weights": True, "seed": 0, "repeats": repeats,
        "data": {"sha256": "a" * 64, "source": "files"}, "hit_rate": 0.5, "system": "radixlab", "device": "cpu",
        "evicted_tokens": 0, "peak_running": 1, "errors": 0, "command": "python run.py", "environment": {},
        "programs_per_s": programs_per_s[0], "output_tokens_per_s": programs_per_s[0],
        "by_repeat": [{"programs_per_s": x, "output_tokens_per_s": x} for x in programs_per_s],
    }  # fmt: skip
    return Run(Path(name), name, base | summary, table)


def test_a_single_run_is_paired_by_program() -> None:
    ttft = np.random.default_rng(0).exponential(1, (1, 40))
    shuffled = run_of("b", 2 * ttft, [5.0])
    shuffled = shuffled._replace(requests=shuffled.requests.sample(frac=1, random_state=1))
    ratio = compare(run_of("a", ttft, [10.0]), shuffled).ratios
    assert (ratio["ttft_s"].value, ratio["ttft_s"].low, ratio["ttft_s"].high) == pytest.approx((2.0, 2.0, 2.0))
    assert ratio["ttft_s"].n == 40
    assert ratio["programs_per_s"][:3] == (0.5, None, None)
    assert ratio["tpot_s"].value is None


def test_with_repeats_the_interval_holds_the_drift_between_them() -> None:
    ttft = np.ones((3, 40))
    drifting = ttft * np.array([[1.0], [2.0], [4.0]])
    ratio = compare(run_of("a", ttft, [1.0, 1.0, 1.0]), run_of("b", drifting, [1.0, 2.0, 4.0])).ratios
    for name in ("ttft_s", "programs_per_s"):
        assert ratio[name].value == pytest.approx(2.0)
        assert ratio[name].low is not None
        assert ratio[name].low < 1
    assert ratio["program_latency_s"].value == pytest.approx((2.0 * 3.0 * 5.0 / 8.0) ** (1 / 3))


def test_only_programs_that_both_ran_are_paired() -> None:
    a, b = run_of("a", np.ones((1, 5)), [1.0]), run_of("b", np.full((1, 8), 3.0), [1.0])
    ratio = compare(a, b).ratios["ttft_s"]
    assert (ratio.value, ratio.n) == (3.0, 5)
    assert "3 programs are in one run only" in " ".join(differences(a, b)[1])


@pytest.mark.parametrize(
    ("summary", "says"),
    [
        ({"workload": "other"}, "workload: w and other"),
        ({"model": "big"}, "model: tiny and big"),
        ({"data": {"sha256": "b" * 64}}, "sha256: aaaaaaaaaaaa and bbbbbbbbbbbb"),
    ],
)
def test_runs_of_different_things_are_not_comparable(summary: dict[str, Any], says: str) -> None:
    grave, _ = differences(run_of("a", np.ones((1, 5)), [1.0]), run_of("b", np.ones((1, 5)), [1.0], **summary))
    assert grave == [says]


def test_a_different_seed_is_worth_a_note() -> None:
    grave, slight = differences(run_of("a", np.ones((2, 5)), [1.0]), run_of("b", np.ones((2, 5)), [1.0], seed=1))
    assert grave == []
    assert slight == ["seed: 0 and 1"]


def test_the_report_of_a_comparison_opens_offline_and_escapes_names() -> None:
    a, b = run_of("a", np.ones((2, 5)), [1.0, 2.0]), run_of("<b>", np.full((2, 5), 2.0), [3.0, 1.0])
    page = render_comparison(a, [compare(a, b)], ["a note"])
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
