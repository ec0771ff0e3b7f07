"""The judge: six branches and what merges them, drawn lengths, what fits, its data."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.judge import Judge
from workloads.judge.program import DIMENSIONS
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it."""


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def write(folder: Path, content: str, packed: bool = False, name: str = "llm_judge_articles.jsonl") -> str:
    (folder / "sglang_bench_misc").mkdir(exist_ok=True)
    path = folder / "sglang_bench_misc" / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(folder)


def loaded(outputs: str = "auto", count: Any = None, **settings: Any) -> Judge:
    workload = Judge(**settings)
    workload.count_tokens = count or (lambda text: len(text.split()))
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["llm_judge_articles.jsonl", "articles.jsonl"])
def test_dimensions_are_judged_side_by_side_and_merged_into_a_mark(tmp_path: Path, packed: bool, name: str) -> None:
    folder = write(tmp_path, json.dumps("On rain: it is wet.") + "\n", packed, name)
    workload = loaded("free", data_dir=folder, n_dimensions=2)
    backend = MockBackend(reply=lambda prompt: " 8" if prompt.endswith(":") and "mark" in prompt else " Plain. END no")
    (run,) = play(workload, backend)
    article = "Read this article. It will be judged afterwards.\n\nOn rain: it is wet.\n\n"
    clarity, originality = list(DIMENSIONS.values())[:2]
    assert [call.prompt for call in backend.log] == [
        f"{article}Judge its clarity. {clarity} End with the word END.\nJudgment:",
        f"{article}Judge its originality. {originality} End with the word END.\nJudgment:",
        f"{article}It was judged like this:\nclarity: Plain.\noriginality: Plain.\n"
        "From all of this, a mark between 1 (poor) and 10 (excellent):",
    ]
    assert backend.clock.steps == 2, "the branches are one step together, the mark another"
    assert run.state.ret_value == "8"


def test_there_are_six_dimensions_and_a_mark_of_two_tokens() -> None:
    backend = MockBackend(reply=lambda _: "one two three")
    workload = loaded("free", n_articles=1)
    play(workload, backend)
    assert [call.name for call in backend.log] == ["judgment"] * 6 + ["mark"]
    assert backend.log[-1].text.split() == ["one", "two"]
    assert workload.jobs()[0].args["max_tokens"] == 256


def test_lengths_are_drawn_and_never_above_the_limit() -> None:
    workload = loaded(n_articles=8)
    lengths = [len(text.split()) for job in workload.jobs() for text in job.args["judgments"]]
    assert max(lengths) <= 256
    assert len(set(lengths)) > 20
    assert 60 < sum(lengths) / len(lengths) < 110
    assert loaded(n_articles=8, seed=1).jobs()[0].args["judgments"] != workload.jobs()[0].args["judgments"]


def test_fixed_outputs_have_the_drawn_lengths() -> None:
    workload = loaded(n_articles=2, n_dimensions=3)
    assert workload.outputs == "fixed"
    backend = MockBackend()
    play(workload, backend)
    lengths = [call.meta["completion_tokens"] for call in backend.log if call.name == "judgment"]
    drawn = [text for job in workload.jobs() for text in job.args["judgments"]]
    assert sorted(lengths) == sorted(len(text.split(" ")) for text in drawn)


def test_recorded_outputs_come_out_of_the_engine() -> None:
    workload = loaded("recorded", n_articles=1, n_dimensions=3)
    (run,) = play(workload, EngineBackend(make_engine(EngineConfig(model="tiny", pool_tokens=8192))))
    (job,) = workload.jobs()
    said = run.state["judgment"]
    assert said == [text[: len(one)] for one, text in zip(said, job.args["judgments"], strict=True)]
    assert min(map(len, said)) > 50
    assert run.state["mark"] == job.args["mark"]


@pytest.mark.parametrize("outputs", ["recorded", "fixed", "free"])
@pytest.mark.parametrize("limit", [360, 900])
def test_prompt_and_output_end_within_the_context_that_is_asked_for(outputs: str, limit: int) -> None:
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    workload = loaded(
        outputs, count=lambda text: len(engine.tokenizer.encode(text)), n_articles=2, max_context_tokens=limit
    )
    assert all(0 < job.args["max_tokens"] < 256 for job in workload.jobs())
    for run in play(workload, EngineBackend(engine)):
        assert len(run.calls) == 7
        for call in run.calls:
            assert call.meta["prompt_tokens"] + call.meta["completion_tokens"] <= limit


def test_articles_are_cut_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = write(tmp_path, json.dumps("one two three four") + "\n")
    assert loaded(data_dir=folder, max_article_tokens=2).jobs()[0].args["article"] == "one two"
    assert loaded(data_dir=folder, max_context_tokens=4000).jobs()[0].args["article"] == "one two three four"
    with pytest.raises(DataError, match="max_context_tokens=40 leaves no room"):
        loaded(data_dir=folder, max_context_tokens=40)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"a"\n{', "articles.jsonl, line 2: not JSON"),
        ('{"text": "a"}\n', "articles.jsonl, line 1: a JSON string is needed, not dict"),
        ("\n\n", "no articles in it"),
    ],
)
def test_broken_data_is_named_and_no_sample_taken(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loaded(data_dir=write(tmp_path, content))


def test_a_folder_without_articles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no llm_judge_articles\.jsonl or .* or articles\.jsonl"):
        loaded(data_dir=write(tmp_path, "", name="other"))


def test_the_sample_is_announced_and_warming_up_is_apart() -> None:
    workload = loaded(n_articles=None)
    assert workload.data.origin == "sample"
    assert "made by our own code, not" in workload.data.note
    articles = {job.args["article"] for job in workload.jobs()}
    assert len(articles) == 8
    (warm,) = workload.warmup()
    assert warm.namespace == "warmup"
    assert warm.args["article"] not in articles


@pytest.mark.parametrize(
    "settings",
    [
        {"n_articles": 0},
        {"n_dimensions": 0},
        {"n_dimensions": 7},
        {"max_tokens": 0},
        {"max_article_tokens": 0},
        {"max_context_tokens": 0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("judge", settings)


def test_the_real_files() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with sglang_bench_misc/")
    workload = loaded(data_dir=REAL)
    articles = [job.args["article"] for job in workload.jobs()]
    assert len(set(articles)) == 25
    assert min(map(len, articles)) > 500
    backend = MockBackend()
    play(workload, backend)
    assert len(backend.log) == 25 * 7
