"""DSPy's own evaluation, with threads, on the sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.config import ConfigError
from experiments import dspy_evaluate

SMALL = ["model=tiny", "workload.n_train=4", "workload.n_full_demos=1", "workload.n_demos=2", "workload.max_tokens=6"]


@pytest.fixture(autouse=True)
def _sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_every_question_is_asked_once_and_demonstrations_come_from_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "found.json"
    small = [*SMALL, "policy=lru", "parallel=4", "workload.n_questions=6", "engine.device=cpu"]
    assert dspy_evaluate.main([*small, f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert (found["questions"], found["requests"], found["threads"]) == (6, 6, 4)
    assert 0.3 < found["hit_rate"] <= found["infinite_hit_rate"] + 1e-9 < 1
    assert found["exact_match"] is None  # random weights
    assert found["in_form"] == 0
    assert found["data"] == "sample"
    assert "hit_rate" in capsys.readouterr().out


def test_without_a_cache_nothing_is_found(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    small = [*SMALL, "policy=none", "workload.n_questions=3", "engine.device=cpu"]
    assert dspy_evaluate.main([*small, f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert found["hit_rate"] == 0.0 < found["infinite_hit_rate"]
    assert found["threads"] == dspy_evaluate.THREADS


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["workload=mmlu"], "workload=mmlu on system=radixlab: only dspy_rag"),
        (["rate=3"], "rate isn't served"),
        (["workload.kind=recorded", "engine.device=cpu"], "use workload.kind=live"),
    ],
)
def test_what_it_cannot_do_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        dspy_evaluate.main(overrides)
