"""DSPy's own evaluation, with threads, on the sample."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

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
        (["workload=mmlu"], "workload='mmlu' isn't served"),
        (["rate=3"], "rate=3"),
        (["repeats=2"], "repeats=2 isn't served"),
        (["workload.kind=recorded"], "workload.kind=recorded, workload.outputs=auto: DSPy's loop needs kind=live"),
        (["workload.outputs=recorded"], "workload.outputs=recorded: DSPy's loop needs"),
        (["workload.kind=nonsense"], "kind='nonsense' is not allowed"),
        (["nonsense=1"], "unknown setting 'nonsense'"),
        (["policy=nonsense"], "unknown policy 'nonsense'"),
    ],
)
def test_what_it_cannot_do_is_told_in_a_line(
    overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dspy_evaluate.main(overrides) == 1
    told = capsys.readouterr().err
    assert says in told
    assert "Traceback" not in told


def test_a_search_takes_as_long_as_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(dspy_evaluate.time, "sleep", waited.append)
    slow = ["policy=lru", "workload.n_questions=2", "workload.retrieval_seconds=0.25", "engine.device=cpu"]
    assert dspy_evaluate.main([*SMALL, *slow]) == 0
    assert waited.count(0.25) == 2
