"""The benchmark of the language compares runs that did the same work, and its file says what they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from experiments.bench.lang import main
from experiments.bench.lang_overhead import overhead
from experiments.bench.lang_scale import backend_named, measure, run_all
from experiments.bench.lang_speculation import FIELDS, speculation
from experiments.bench.lang_variants import ALL_EXACT, SEQUENTIAL, Variant, compare, exact_passes

SMALLEST = [
    "--models=tiny",
    "--rounds=1",
    "--variant-rounds=1",
    "--scale-rounds=1",
    "--programs=2",
    "--variant-programs=2",
    "--mock-programs=20",
    "--engine-programs=17",
]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out: Path = tmp_path_factory.mktemp("bench") / "lang.json"
    assert main([*SMALLEST, f"--out={out}"]) == 0
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_overhead_is_over_the_same_steps(result: dict[str, Any]) -> None:
    assert [(cell["model"], cell["gens"], cell["steps"]) for cell in result["overhead"]] == [
        ("tiny", 1, 16),
        ("tiny", 3, 48),
    ]
    for cell in result["overhead"]:
        assert list(cell["systems"]) == ["direct", "eager", "compiled", "direct again"]
        assert cell["systems"]["direct"]["times_direct"]["value"] == 1


def test_all_programs_are_in_flight_at_once(result: dict[str, Any]) -> None:
    rows = {(row["backend"], row["variant"]): row for row in result["scale"]}
    assert set(rows) == {(backend, how) for backend in ("mock", "tiny") for how in ("eager", "async", "compiled")}
    for (backend, _), row in rows.items():
        assert row["in_flight"] == row["programs"] == (20 if backend == "mock" else 17)
        assert row["calls"] == 3 * row["programs"]


def test_each_way_of_running_has_a_row_and_exact_ones_the_same_outputs(result: dict[str, Any]) -> None:
    cells = {(cell["program"], cell["at_once"]): cell for cell in result["variants"]}
    assert set(cells) == {(name, n) for name in ("tree of thought", "judge") for n in (1, 2)} | {
        ("question before instructions", 2)
    }
    for (program, _), cell in cells.items():
        rows = {row["variant"]: row for row in cell["variants"]}
        if program == "question before instructions":
            moved = rows["compiled, code movement"]
            assert moved["cached_tokens"] > rows["compiled"]["cached_tokens"]
            assert any("prompt changed" in report for report in moved["reports"])
            continue
        decoded = rows.pop("compiled, select by decoding")
        assert len(rows) == 4 + len(exact_passes())
        assert {row["programs_with_same_outputs"] for row in rows.values()} == {2}
        assert decoded["prompt_tokens"] < rows["compiled"]["prompt_tokens"], "a choice is no prompt of its own"
        assert rows["eager"]["steps"] < rows[SEQUENTIAL]["steps"]
        assert rows["eager"]["calls"] == rows[SEQUENTIAL]["calls"] == rows["compiled"]["calls"]
        assert rows[ALL_EXACT]["calls"] < rows["compiled"]["calls"]


def test_calls_with_speculation_and_calls_saved_are_those_without() -> None:
    rows = speculation(programs=2, spec_tokens=(64,))
    assert rows[0]["calls"] == 2, "one call says it all"
    assert rows[0]["calls"] < rows[1]["calls"] < rows[1]["calls_without"] == 2 * len(FIELDS)
    for row in rows:
        assert row["calls"] + row["saved_calls"] == row["gens"]


def test_runs_that_say_something_else_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    from experiments.bench import lang_overhead, lang_variants
    from experiments.bench.lang_programs import judge

    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    other = {1: lang_overhead.three_gens}
    monkeypatch.setattr(lang_overhead, "PROGRAMS", other)
    with pytest.raises(RuntimeError, match="eager didn't do the same work"):
        overhead(engine, "tiny", programs=1, gens=1, new_tokens=2, rounds=1)

    changed = Variant("another", judge.bind(task="Say something else."), True)
    asked = [Variant(SEQUENTIAL, judge, False), changed]
    monkeypatch.setattr(lang_variants, "variants_of", lambda _: asked)
    monkeypatch.setattr(lang_variants, "TASKS", ("One task.",))
    monkeypatch.setattr(changed.program, "run_batch", lambda _, **more: judge.run_batch([("Two.",)], **more))
    with pytest.raises(RuntimeError, match="another: the outputs aren't those of"):
        compare(engine, "tiny", "judge", programs=1, at_once=1, rounds=1)


def test_programs_that_are_not_all_in_flight_are_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    assert measure("mock", "eager", 20)["in_flight"] == 20
    monkeypatch.setattr(
        "experiments.bench.lang_scale.run_all", lambda variant, _, backend: run_all(variant, 1, backend)
    )
    with pytest.raises(RuntimeError, match="only 1 of 20 programs"):
        measure("mock", "eager", 20)


def test_an_unknown_way_of_running_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown variant 'lazy'; available: async, compiled, eager"):
        run_all("lazy", 1, backend_named("mock", 1))
