"""Skeleton of thought: tips one after another, details side by side, drawn lengths, what fits, its data."""

from __future__ import annotations

import gzip
import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.registry import load_workload
from workloads.skeleton import Skeleton
from workloads.skeleton.program import DETAIL, EXAMPLES

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it."""


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def write(folder: Path, content: str, packed: bool = False, name: str = "tip_suggestion_topics.jsonl") -> str:
    (folder / "sglang_bench_misc").mkdir(exist_ok=True)
    path = folder / "sglang_bench_misc" / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(folder)


def topics(*names: str) -> str:
    return "".join(json.dumps({"topic": name, "number": 5}) + "\n" for name in names)


def loaded(outputs: str = "auto", count: Any = None, **settings: Any) -> Skeleton:
    workload = Skeleton(**settings)
    workload.count_tokens = count or (lambda text: len(text.split()))
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["tip_suggestion_topics.jsonl", "topic.jsonl"])
def test_tips_grow_in_one_prompt_and_each_is_written_out_by_a_call_of_its_own(
    tmp_path: Path, packed: bool, name: str
) -> None:
    workload = loaded("free", data_dir=write(tmp_path, topics("tea"), packed, name), n_tips=2)
    assert workload.data.origin == "files"
    backend = MockBackend(reply=lambda prompt: f" tip{prompt.count('Tip')}. And more" if "Tips" in prompt else " Well.")
    (run,) = play(workload, backend)
    start = f"{EXAMPLES}tea.\nHere are 2 short tips, each of a few words.\n"
    assert [call.prompt for call in backend.log] == [
        f"{start}Tip 1:",
        f"{start}Tip 1: tip5.\nTip 2:",
        f"{DETAIL}Topic: tea\nTip: tip5\nIn detail:",
        f"{DETAIL}Topic: tea\nTip: tip6\nIn detail:",
    ]
    assert run.state.ret_value == "Well.\nWell."
    assert backend.clock.steps == 3, "a tip, the next, and both details together"


def test_five_tips_and_five_details_have_the_papers_limits_and_stops() -> None:
    backend = MockBackend()
    workload = loaded("free", n_topics=1)
    play(workload, backend)
    (job,) = workload.jobs()
    assert (job.args["n_tips"], job.args["tip_tokens"], job.args["detail_tokens"]) == (5, 24, 128)
    assert [call.name for call in backend.log] == [f"tip{i}" for i in range(5)] + ["detail"] * 5
    assert backend.clock.steps == 6


@pytest.mark.parametrize("said", [" short. More", " short\nMore"])
def test_a_tip_ends_at_a_full_stop_or_a_lines_end(said: str) -> None:
    workload = loaded("free", n_topics=1, n_tips=1)
    (run,) = play(workload, MockBackend(reply=lambda _: said))
    assert run.state["tip0"] == " short"


def test_lengths_are_drawn_and_never_above_the_limit() -> None:
    workload = loaded(n_topics=10)
    details = [len(text.split()) for job in workload.jobs() for text in job.args["details"]]
    tips = [len(text.split()) for job in workload.jobs() for text in job.args["tips"]]
    assert max(details) <= 128
    assert max(tips) <= 24
    assert len(set(details)) > 20
    assert statistics.fmean(details) == pytest.approx(64, rel=0.25)
    assert loaded(n_topics=10).jobs()[3].args["tips"] == workload.jobs()[3].args["tips"]
    assert loaded(n_topics=10, seed=1).jobs()[3].args["tips"] != workload.jobs()[3].args["tips"]


def test_fixed_outputs_have_the_drawn_lengths() -> None:
    workload = loaded(n_topics=2, n_tips=2)
    assert workload.outputs == "fixed"
    backend = MockBackend()
    play(workload, backend)
    lengths = sorted(call.meta["completion_tokens"] for call in backend.log)
    drawn = [text for job in workload.jobs() for key in ("tips", "details") for text in job.args[key]]
    assert lengths == sorted(len(text.split(" ")) for text in drawn)


def test_recorded_outputs_come_out_of_the_engine() -> None:
    workload = loaded("recorded", n_topics=2, n_tips=2, tip_tokens=40, detail_tokens=100)
    runs = play(workload, EngineBackend(make_engine(EngineConfig(model="tiny", pool_tokens=8192))))
    for run, job in zip(runs, workload.jobs(), strict=True):
        said = [run.state[f"tip{i}"] for i in range(2)]
        assert said == [tip[: len(one)] for one, tip in zip(said, job.args["tips"], strict=True)]
        assert min(map(len, said)) > 5


@pytest.mark.parametrize("outputs", ["recorded", "fixed", "free"])
def test_prompt_and_output_end_within_the_context_that_is_asked_for(outputs: str) -> None:
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    limit = 310
    workload = loaded(
        outputs, count=lambda text: len(engine.tokenizer.encode(text)), n_topics=2, max_context_tokens=limit
    )
    assert all(0 < job.args["tip_tokens"] <= 24 and 0 < job.args["detail_tokens"] < 128 for job in workload.jobs())
    for run in play(workload, EngineBackend(engine)):
        for call in run.calls:
            assert call.meta["prompt_tokens"] + call.meta["completion_tokens"] <= limit


def test_no_room_is_refused() -> None:
    with pytest.raises(DataError, match="max_context_tokens=60 leaves no room for 5 outputs behind a prompt of"):
        loaded(max_context_tokens=60)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (topics("tea") + "{\n", "topics.jsonl, line 2: not JSON"),
        ('{"title": "tea"}\n', "topics.jsonl, line 1: no field 'topic'; its fields: title"),
        ('{"topic": 5}\n', "line 1: field 'topic' is int, str is needed"),
        ("\n", "no topics in it"),
    ],
)
def test_broken_data_is_named_and_no_sample_taken(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded(data_dir=write(tmp_path, content))


def test_a_folder_without_topics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no tip_suggestion_topics\.jsonl or .* or topic\.jsonl"):
        loaded(data_dir=write(tmp_path, "", name="other"))


def test_the_sample_is_announced_and_warming_up_is_apart() -> None:
    workload = loaded(n_topics=None)
    assert workload.data.origin == "sample"
    assert "made by our own code, not" in workload.data.note
    assert len({job.args["topic"] for job in workload.jobs()}) == 10
    (warm,) = workload.warmup()
    assert warm.namespace == "warmup"
    assert warm.args["topic"] not in {job.args["topic"] for job in workload.jobs()}


@pytest.mark.parametrize(
    "settings", [{"n_topics": 0}, {"n_tips": 0}, {"tip_tokens": 0}, {"detail_tokens": 0}, {"max_context_tokens": 0}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("skeleton", settings)


def test_the_real_files() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with sglang_bench_misc/")
    workload = loaded(data_dir=REAL)
    assert len({job.args["topic"] for job in workload.jobs()}) == 50
    backend = MockBackend()
    play(workload, backend)
    assert len(backend.log) == 500
