"""HellaSwag: every form of its data, its prompts, its questions, its score."""

import gzip
import json
import os
from pathlib import Path

import pytest

from lang import Runner
from lang.backends.mock import MockBackend
from workloads.data import DataError, FromHub
from workloads.hellaswag import HellaSwag
from workloads.hellaswag import data as hellaswag_data
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it from the tests that make their own data."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def published(n=8):
    return [
        {
            "ind": i,
            "activity_label": f"Act {i}",
            "ctx": f"Somebody does {i}. they",
            "label": i % 4,
            "endings": [f"end {i}{letter}." for letter in "abcd"],
            "split": "val",
        }
        for i in range(n)
    ]


def copied():
    """The form in which the label already stands at the head of the context."""
    return [
        {
            "ind": row["ind"],
            "ctx": f"{row['activity_label']}: {row['ctx']}",
            "label": row["label"],
            "endings": row["endings"],
        }
        for row in published()
    ]


def write(folder, rows, packed=False):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file = folder / ("hellaswag_val.jsonl.gz" if packed else "hellaswag_val.jsonl")
    file.write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


def loaded(**kwargs):
    workload = HellaSwag(**kwargs)
    workload.load()
    return workload


def prompts(workload):
    return [job.args["examples"] + job.args["question"] for job in workload.jobs()]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [published, copied])
def test_both_forms_give_the_papers_prompt(tmp_path, rows, packed):
    workload = loaded(data_dir=write(tmp_path, rows(), packed), n_shots=2, n_questions=3)
    assert prompts(workload)[1] == (
        "Act 0: Somebody does 0. they end 0a.\n\nAct 1: Somebody does 1. they end 1b.\n\nAct 3: Somebody does 3. they "
    )
    assert workload.jobs()[1].args["choices"] == ("end 3a.", "end 3b.", "end 3c.", "end 3d.")
    assert [job.name for job in workload.jobs()] == ["hellaswag/2", "hellaswag/3", "hellaswag/4"]
    assert workload.data.origin == "files"


def test_the_file_itself_may_be_named(tmp_path):
    write(tmp_path, published())
    assert len(loaded(data_dir=str(tmp_path / "hellaswag_val.jsonl"), n_shots=1, n_questions=None).jobs()) == 7


def test_the_hub_gives_the_same_prompts(tmp_path, monkeypatch):
    def hub(dataset, config, splits):
        assert (dataset, config, splits) == ("Rowan/hellaswag", None, ("validation",))
        return FromHub({"validation": [{**row, "label": str(row["label"])} for row in published()]})

    monkeypatch.setattr(hellaswag_data, "from_hub", hub)
    workload = loaded(n_shots=2)
    assert workload.data.origin == "hub"
    assert prompts(workload) == prompts(loaded(data_dir=write(tmp_path, published()), n_shots=2))


def test_examples_are_no_questions_unless_the_paper_is_followed(tmp_path):
    folder = write(tmp_path, published())
    ours, papers = (
        loaded(data_dir=folder, n_shots=3, n_questions=5),
        loaded(data_dir=folder, n_shots=3, n_questions=5, paper_compat=True),
    )
    assert [job.name for job in ours.jobs()] == [f"hellaswag/{i}" for i in range(3, 8)]
    assert [job.name for job in papers.jobs()] == [f"hellaswag/{i}" for i in range(5)]
    assert not any(job.args["question"] in job.args["examples"] for job in ours.jobs())
    assert [job.args["question"] in job.args["examples"] for job in papers.jobs()] == [True] * 3 + [False] * 2


def test_without_data_a_sample_is_made_and_announced():
    workload = loaded()
    assert workload.data.origin == "sample"
    assert "not HellaSwag" in workload.data.note
    assert workload.data.sha256.startswith("98a7259f5cf523d4"), "the same on every machine; a change must be meant"
    assert len(workload.jobs()) == len(set(prompts(workload))) == 76
    for job in workload.jobs():
        assert len(set(job.args["choices"])) == 4


def test_warming_up_warms_nothing_that_is_measured():
    workload = loaded()
    warm = workload.warmup()
    assert warm
    assert {job.namespace for job in warm}.isdisjoint({job.namespace for job in workload.jobs()})
    for job in warm:
        assert not any(job.args["examples"][0] == prompt[0] for prompt in prompts(workload))
        assert not any(job.args["question"] in prompt for prompt in prompts(workload))


def test_the_score_is_the_share_of_right_endings(tmp_path):
    workload = loaded(data_dir=write(tmp_path, published()), n_shots=4)

    def score(logprobs):
        runner = Runner(MockBackend(logprobs=logprobs))
        runs = [runner.start(job.program, job.args, name=job.name) for job in workload.jobs()]
        while runner.active:
            runner.step()
        return workload.score(runs)

    right = {f"end {i}{'abcd'[i % 4]}." for i in range(8)}
    assert score(lambda _, choice: [-1.0 if choice in right else -2.0]) == ("accuracy", 1.0, 4)
    assert score(lambda _, choice: [-1.0 if choice.endswith("b.") else -2.0]) == ("accuracy", 0.25, 4)
    assert workload.score([]) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endings": ["a", "b", "c"]}, r"hellaswag_val.jsonl, line 1: four endings"),
        ({"endings": ["a", "b", "c", ""]}, r"line 1: four endings \(strings that aren't empty\)"),
        ({"label": ""}, r"line 1: the label is ''; it must be 0, 1, 2 or 3 \(the test split has none\)"),
        ({"label": 4}, r"line 1: the label is 4"),
        ({"ctx": None}, r"line 1: field 'ctx' is NoneType, str is needed"),
    ],
)
def test_a_broken_row_is_named(tmp_path, change, message):
    folder = write(tmp_path, [{**published()[0], **change}])
    with pytest.raises(DataError, match=message):
        loaded(data_dir=folder, n_shots=0)


def test_a_folder_without_hellaswag_is_refused_and_no_sample_taken(tmp_path):
    with pytest.raises(DataError, match=r"no HellaSwag in .*; it needs hellaswag_val.jsonl or hellaswag_val.jsonl.gz"):
        loaded(data_dir=str(tmp_path))
    with pytest.raises(DataError, match="no items in it"):
        loaded(data_dir=write(tmp_path, []))
    with pytest.raises(DataError, match="n_shots=20 leaves no question of 8 items"):
        loaded(data_dir=write(tmp_path, published()))


@pytest.mark.parametrize("kwargs", [{"n_shots": -1}, {"n_questions": 0}, {"n_questions": "all"}])
def test_bad_settings_are_refused(kwargs):
    with pytest.raises(ValueError, match=f"{next(iter(kwargs))}=.* is not allowed"):
        load_workload("hellaswag", kwargs)


def test_the_real_file():
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with hellaswag/")
    workload = loaded(data_dir=str(Path(REAL)))
    assert len(workload.jobs()) == 200
    assert (
        workload.jobs()[0].args["examples"].startswith("Roof shingle removal: A man is sitting on a roof. he starts ")
    )
    assert workload.data.sha256.startswith("56293b3addac7fdd"), "the sum that sha256sum gives for the copy"
