"""GSM8K: every form of its data, its prompts, shots and questions, what fits, the score."""

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
from workloads.data import DataError, FromHub
from workloads.gsm8k import GSM8K
from workloads.gsm8k import data as gsm8k_data
from workloads.gsm8k.data import Problem, last_number, same_number
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def rows(split: str, n: int = 6) -> list[dict[str, str]]:
    return [
        {"question": f"What is {i} + 1 in {split}?", "answer": f"{i} + 1 = <<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(n)
    ]


def write(folder: Path, packed: bool = False, **splits: Any) -> str:
    (folder / "gsm8k").mkdir(exist_ok=True)
    for split in ("train", "test"):
        content = "".join(json.dumps(row) + "\n" for row in splits.get(split, rows(split))).encode()
        path = folder / "gsm8k" / f"{split}.jsonl{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


def loaded(outputs: str = "auto", **settings: Any) -> GSM8K:
    workload = GSM8K(**settings)
    workload.count_tokens = lambda text: len(text.split())
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


def prompts(workload: GSM8K) -> list[str]:
    return [job.args["examples"] + job.args["question"] for job in workload.jobs()]


@pytest.mark.parametrize("packed", [False, True])
def test_the_published_files_give_the_papers_prompt(tmp_path: Path, packed: bool) -> None:
    workload = loaded(data_dir=write(tmp_path, packed), n_shots=1, n_questions=2)
    assert prompts(workload)[1] == (
        "Question: What is 0 + 1 in train?\nAnswer: 0 + 1 = <<0+1=1>>1\n#### 1\n\n"
        "Question: What is 1 + 1 in test?\nAnswer:"
    )
    assert [job.name for job in workload.jobs()] == ["gsm8k/0", "gsm8k/1"]
    assert workload.data.origin == "files"


def test_the_folder_itself_may_be_named(tmp_path: Path) -> None:
    write(tmp_path)
    assert len(loaded(data_dir=str(tmp_path / "gsm8k"), n_questions=None).jobs()) == 6


def test_the_hub_gives_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(dataset: str, config: str, splits: tuple[str, ...]) -> FromHub:
        assert (dataset, config, splits) == ("openai/gsm8k", "main", ("train", "test"))
        return FromHub({split: rows(split) for split in splits})

    monkeypatch.setattr(gsm8k_data, "from_hub", hub)
    workload = loaded()
    assert workload.data.origin == "hub"
    assert prompts(workload) == prompts(loaded(data_dir=write(tmp_path)))


def test_shots_are_no_questions_unless_the_paper_is_followed(tmp_path: Path) -> None:
    folder = write(tmp_path)
    ours, papers = loaded(data_dir=folder), loaded(data_dir=folder, paper_compat=True)
    assert not any(job.args["question"] in job.args["examples"] for job in ours.jobs())
    assert [job.args["question"] in job.args["examples"] for job in papers.jobs()] == [True] * 5 + [False]


def test_the_sample_is_announced_and_the_same_every_time() -> None:
    workload = loaded(n_questions=None)
    assert workload.data.origin == "sample"
    assert "not GSM8K" in workload.data.note
    assert len(workload.jobs()) == len(set(prompts(workload))) == 24
    assert workload.data == loaded().data
    for job in workload.jobs():
        assert job.args["question"] not in job.args["examples"]


def test_warming_up_warms_nothing_that_is_measured() -> None:
    workload = loaded()
    for n_shots in (0, 5):
        for warm in loaded(n_shots=n_shots).warmup():
            assert warm.namespace == "warmup"
            assert not any(warm.args["question"] in prompt for prompt in prompts(workload))


def test_a_call_ends_at_the_next_question_and_is_greedy(tmp_path: Path) -> None:
    workload = loaded("free", data_dir=write(tmp_path), n_questions=1)
    (run,) = play(workload, MockBackend(reply=lambda _: " 0 + 1 = 1\n#### 1\n\nQuestion: And 5?"))
    assert run.state["answer"] == " 0 + 1 = 1\n#### 1\n\n"
    assert workload.score([run]) == ("accuracy", 1.0, 1)


def test_recorded_solutions_come_out_of_the_engine_and_are_right(tmp_path: Path) -> None:
    workload = loaded(data_dir=write(tmp_path), n_questions=2)
    assert workload.outputs == "recorded"
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=4096))
    runs = play(workload, EngineBackend(engine))
    assert [run.state["answer"] for run in runs] == [" " + row["answer"] for row in rows("test")[:2]]
    assert workload.score(runs) == ("accuracy", 1.0, 2)


def test_fixed_outputs_are_as_long_and_score_nothing(tmp_path: Path) -> None:
    workload = loaded("fixed", data_dir=write(tmp_path), n_questions=2)
    backend = MockBackend()
    runs = play(workload, backend)
    assert [call.meta["completion_tokens"] for call in backend.log] == [
        len((" " + row["answer"]).split(" ")) for row in rows("test")[:2]
    ]
    assert workload.score(runs) == ("accuracy", 0.0, 2)
    assert workload.score([]) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("So 3 and 4, thus 1,234.50.", "1234.50"),
        ("#### -7", "-7"),
        ("18.", "18"),
        ("none", ""),
        ("it costs $5", "5"),
    ],
)
def test_the_last_number_counts(text: str, number: str) -> None:
    assert last_number(text) == number


def test_numbers_are_compared_as_numbers() -> None:
    assert same_number("18.0", "18")
    assert not same_number("", "18")
    assert not same_number("81", "18")


def test_a_problem_knows_its_answer_and_its_steps_without_marks() -> None:
    problem = Problem("q", "Ann has 2*3=<<2*3=6>>6.\n\nBob has 1,000.\n#### 1,006")
    assert problem.answer == "1006"
    assert problem.steps == ["Ann has 2*3=6.", "Bob has 1,000."]
    assert Problem("q", "#### 3").steps == ["The answer is 3."]


def test_examples_are_left_out_until_all_fits(tmp_path: Path) -> None:
    folder = write(tmp_path)
    settings: dict[str, Any] = {"data_dir": folder, "max_tokens": 10}
    longest = max(len(prompt.split()) for prompt in prompts(loaded(**settings))) + 10
    assert prompts(loaded(**settings, max_context_tokens=longest)) == prompts(loaded(**settings))
    fewer = loaded(**settings, max_context_tokens=longest - 1)
    assert fewer.data.note == f"to fit into {longest - 1} tokens, 4 of 5 examples are shown"
    assert prompts(fewer) == prompts(loaded(**settings, n_shots=4))
    with pytest.raises(DataError, match="max_context_tokens=12 has no room for 'Question: What is"):
        loaded(**settings, max_context_tokens=12)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "train.jsonl, line 7: no field 'answer'; its fields: question"),
        ({"question": 1, "answer": "#### 1"}, "train.jsonl, line 7: field 'question' is int, str is needed"),
        ({"question": "q", "answer": "so it's 18"}, "line 7: the answer must end with #### and a number"),
        ({"question": "q", "answer": "#### many"}, "line 7: the answer must end with #### and a number"),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    folder = write(tmp_path, train=[*rows("train"), row])
    with pytest.raises(DataError, match=message):
        loaded(data_dir=folder)


def test_a_folder_without_gsm8k_is_refused_and_no_sample_taken(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no train\.jsonl or train\.jsonl\.gz in .*; it needs train\.jsonl, test\.jsonl"
    ):
        loaded(data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"test\.jsonl: no problems in it"):
        loaded(data_dir=write(tmp_path, test=[]))
    with pytest.raises(DataError, match="n_shots=7, but there are only 6 problems to show; give fewer"):
        loaded(data_dir=write(tmp_path), n_shots=7)


@pytest.mark.parametrize(
    "settings", [{"n_shots": -1}, {"n_questions": 0}, {"max_tokens": 0}, {"max_context_tokens": 0}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("gsm8k", settings)


def test_the_real_files() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with gsm8k/")
    workload = loaded(data_dir=REAL, n_questions=None)
    assert len(workload.jobs()) == 1319
    assert prompts(workload)[0].startswith("Question: Natalia sold clips to 48 of her friends in April")
    assert workload.score(play(workload, MockBackend())) == ("accuracy", 1.0, 1319)
