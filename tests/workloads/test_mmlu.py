"""MMLU: every form of its data, its prompts, its order, its score."""

import csv
import gzip
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from lang import Runner
from lang.backends.mock import MockBackend
from workloads.data import DataError, FromHub
from workloads.mmlu import MMLU
from workloads.mmlu import data as mmlu_data
from workloads.mmlu.workload import PAPER_SHOTS
from workloads.registry import load_workload

SUBJECTS = ("high_school_us_history", "logic")


REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it from the tests that make their own data."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def rows(split, n):
    return [
        {
            "subject": subject,
            "question": f'{split} {i}, "quoted"\nand broken?',
            "choices": [f"{i}{letter}, x" for letter in "abcd"],
            "answer": "ABCD"[i % 4],
        }
        for subject in SUBJECTS
        for i in range(n)
    ]


def as_csv(items):
    out = io.StringIO()
    csv.writer(out).writerows([item["question"], *item["choices"], item["answer"]] for item in items)
    return out.getvalue().encode()


def csv_files():
    return {
        f"{split}/{subject}_{split}.csv": as_csv([row for row in rows(split, n) if row["subject"] == subject])
        for split, n in (("dev", 5), ("test", 3))
        for subject in SUBJECTS
    }


def write_csv(folder):
    for name, content in csv_files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_tar(folder):
    with tarfile.open(folder / "data.tar", "w") as tar:
        for name, content in csv_files().items():
            info = tarfile.TarInfo(f"data/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def write_jsonl(folder, pack=lambda content: content, suffix=""):
    for split, n in (("dev", 5), ("test", 3)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(split, n))
        (folder / f"mmlu_{split}.jsonl{suffix}").write_bytes(pack(lines.encode()))


FORMS = {
    "csv": write_csv,
    "csv in data/": lambda folder: write_csv(folder / "data"),
    "data.tar": write_tar,
    "jsonl": write_jsonl,
    "jsonl.gz": lambda folder: write_jsonl(folder, gzip.compress, ".gz"),
}


def prompts(workload):
    return [job.args["examples"] + job.args["question"] for job in workload.jobs()]


def loaded(**kwargs):
    workload = MMLU(**kwargs)
    workload.load()
    return workload


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_gives_the_same_prompts(form, tmp_path):
    FORMS[form](tmp_path)
    workload = loaded(data_dir=str(tmp_path))
    assert (workload.data.origin, workload.data.path, workload.data.note) == ("files", str(tmp_path), "")
    header = "The following are multiple choice questions (with answers) about high school us history.\n\n"
    shots = "".join(
        f'dev {i}, "quoted"\nand broken?\nA. {i}a, x\nB. {i}b, x\nC. {i}c, x\nD. {i}d, x\nAnswer: {"ABCD"[i % 4]}\n\n'
        for i in range(5)
    )
    question = 'test 0, "quoted"\nand broken?\nA. 0a, x\nB. 0b, x\nC. 0c, x\nD. 0d, x\nAnswer:'
    assert prompts(workload)[0] == header + shots + question
    assert [job.name for job in workload.jobs()] == [f"mmlu/{subject}/{i}" for subject in SUBJECTS for i in range(3)]


def test_the_tar_itself_may_be_named(tmp_path):
    write_tar(tmp_path)
    assert len(loaded(data_dir=str(tmp_path / "data.tar")).jobs()) == 6


def test_the_hub_gives_the_same_prompts(tmp_path, monkeypatch):
    def hub(dataset, config, splits):
        assert (dataset, config) == ("cais/mmlu", "all")
        found = {split: rows(split, 5 if split == "dev" else 3) for split in splits}
        for row in (row for items in found.values() for row in items):
            row["answer"] = "ABCD".index(row["answer"])
        return FromHub(found)

    monkeypatch.setattr(mmlu_data, "from_hub", hub)
    workload = loaded()
    assert (workload.data.origin, workload.data.path, len(workload.data.sha256)) == ("hub", "cais/mmlu", 64)
    write_csv(tmp_path)
    assert prompts(workload) == prompts(loaded(data_dir=str(tmp_path)))


def test_without_data_a_sample_is_made_and_announced():
    workload = loaded()
    assert workload.data.origin == "sample"
    assert "not MMLU" in workload.data.note
    assert "127.0.0.1:9 can't be reached" in workload.data.note
    assert "workload.data_dir=FOLDER" in workload.data.note
    assert len(workload.jobs()) == len(set(prompts(workload))) == 160
    assert prompts(workload) == prompts(loaded())
    assert workload.data.sha256.startswith("7a58a831ac102fd4"), "the same on every machine; a change must be meant"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test/logic_test.csv", b"q,a,b,c,d\n", r"logic_test.csv, line 1: 5 columns, 6 are needed"),
        ("test/logic_test.csv", b"q,a,b,c,d,answer\n", r"logic_test.csv, line 1: the answer is 'answer'; it must be A"),
        ("test/logic_test.csv", b"q,a,b,c,d,AB\n", r"the answer is 'AB'"),
        ("dev/logic_dev.csv", b"", r"logic has 0 examples; give fewer"),
    ],
)
def test_a_broken_csv_is_named(tmp_path, name, content, message):
    write_csv(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        loaded(data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["a", "b", "c"]}, r"mmlu_test.jsonl, line 1: four choices"),
        ({"answer": 4}, r"line 1: the answer is '4'"),
        ({"answer": None}, r"line 1: field 'answer' is NoneType, str or int is needed"),
        ({"question": 3}, r"line 1: field 'question' is int, str is needed"),
    ],
)
def test_a_broken_row_is_named(tmp_path, row, message):
    write_jsonl(tmp_path)
    (tmp_path / "mmlu_test.jsonl").write_text(json.dumps({**rows("test", 1)[0], **row}))
    with pytest.raises(DataError, match=message):
        loaded(data_dir=str(tmp_path))


def test_a_folder_without_mmlu_is_refused_and_no_sample_taken(tmp_path):
    with pytest.raises(DataError, match=r"no MMLU in .*; it needs dev/\*_dev.csv"):
        loaded(data_dir=str(tmp_path))
    write_jsonl(tmp_path)
    (tmp_path / "mmlu_dev.jsonl").unlink()
    with pytest.raises(DataError, match="no MMLU dev questions"):
        loaded(data_dir=str(tmp_path))


def test_which_questions_and_in_what_order(tmp_path):
    write_csv(tmp_path)
    folder = str(tmp_path)
    names = lambda **kwargs: [job.name for job in loaded(data_dir=folder, **kwargs).jobs()]  # noqa: E731
    assert names(subjects=1) == [f"mmlu/high_school_us_history/{i}" for i in range(3)]
    assert names(subjects=["logic"], questions_per_subject=2) == ["mmlu/logic/0", "mmlu/logic/1"]
    assert names(subjects="logic", limit=1) == ["mmlu/logic/0"]
    shuffled = names(order="shuffled", seed=3)
    assert shuffled != names()
    assert sorted(shuffled) == sorted(names())
    assert shuffled == names(order="shuffled", seed=3) != names(order="shuffled", seed=4)
    with pytest.raises(DataError, match="MMLU has no 'magic'; its subjects: high_school_us_history, logic"):
        names(subjects=["magic"])


def test_examples_are_dropped_until_they_fit(tmp_path):
    write_csv(tmp_path)
    workload = MMLU(data_dir=str(tmp_path), max_shot_tokens=30)
    workload.count_tokens = lambda text: 10 + 8 * text.count("Answer:")
    workload.load()
    assert [prompt.count("Answer:") - 1 for prompt in prompts(workload)] == [2] * 6
    assert [prompt.count("Answer:") for prompt in prompts(loaded(data_dir=str(tmp_path), n_shots=0))] == [1] * 6


def test_paper_compat_runs_subject_by_subject_with_the_papers_examples(tmp_path):
    write_csv(tmp_path)
    workload = loaded(data_dir=str(tmp_path), paper_compat=True, max_shot_tokens=1)
    assert [job.stage for job in workload.jobs()] == [0, 0, 0, 1, 1, 1]
    assert [prompt.count("Answer:") - 1 for prompt in prompts(workload)] == [3, 3, 3, 5, 5, 5]
    assert {job.stage for job in loaded(data_dir=str(tmp_path)).jobs()} == {0}


def test_warming_up_warms_nothing_that_is_measured():
    workload = loaded()
    warm = [job.args["examples"] + job.args["question"] for job in workload.warmup()]
    assert warm
    assert {job.namespace for job in workload.warmup()}.isdisjoint({job.namespace for job in workload.jobs()})
    for prompt in warm:
        assert not any(prompt[0] == measured[0] for measured in prompts(workload))
        assert not any(job.args["question"] in prompt for job in workload.jobs())


def answered(workload, reply):
    runner = Runner(MockBackend(reply))
    runs = [runner.start(job.program, job.args, name=job.name) for job in workload.jobs()]
    while runner.active:
        runner.step()
    return runs


def test_the_score_is_the_share_of_right_first_letters(tmp_path):
    write_csv(tmp_path)
    workload = loaded(data_dir=str(tmp_path))
    right = {prompt: "ABCD"[i % 3 % 4] for i, prompt in enumerate(prompts(workload))}
    assert workload.score(answered(workload, lambda prompt: right[prompt] + ".")) == ("accuracy", 1.0, 6)
    assert workload.score(answered(workload, lambda _: "A")) == ("accuracy", pytest.approx(1 / 3), 6)
    assert workload.score(answered(workload, lambda _: "")).value == 0
    assert workload.score(answered(workload, lambda prompt: 1 / 0 if "test 0" in prompt else right[prompt])).value == (
        pytest.approx(2 / 3)
    ), "a failed run counts as wrong"
    assert workload.score([]) is None
    call = answered(workload, lambda _: "A B C")[0].calls[0]
    assert call.texts == ("A",), "one token is asked for"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"order": "random"}, "'by_subject' or 'shuffled'"),
        ({"order": "shuffled", "paper_compat": True}, "leave order=by_subject"),
        ({"n_shots": -1}, "n_shots=-1 is not allowed: it must be 0 or more"),
        ({"subjects": 0}, "subjects=0 is not allowed"),
        ({"limit": 0}, "limit=0 is not allowed"),
        ({"max_tokens": 1.5}, "max_tokens=1.5 is not allowed"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_workload("mmlu", kwargs)


@pytest.fixture
def real_data(no_network):
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with mmlu/ and tokenizers/")
    return Path(REAL)


def test_the_first_three_subjects_have_58464_prompt_tokens(real_data):
    from engine.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(real_data / "tokenizers" / "tinyllama_tokenizer.json")
    workload = MMLU(data_dir=str(real_data), subjects=3, questions_per_subject=40)
    workload.count_tokens = lambda text: len(tokenizer.encode(text))
    workload.load()
    assert workload.data.origin == "files"
    assert len(workload.jobs()) == 120
    assert sum(workload.count_tokens(prompt) for prompt in prompts(workload)) == 58464


def test_the_papers_examples_are_those_that_gpt35_tokens_leave(real_data):
    """Counted by cl100k_base, written here over its published ranks."""
    import base64

    import regex

    lines = (real_data / "tokenizers" / "cl100k_base.tiktoken").read_text().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    words = regex.compile(
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    )

    def n_tokens(word):
        parts = [word] if word in ranks else [bytes([byte]) for byte in word]
        while len(parts) > 1:
            at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
            if parts[at] + parts[at + 1] not in ranks:
                break
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        return len(parts)

    workload = MMLU(data_dir=str(real_data), subjects=None, questions_per_subject=1)
    workload.count_tokens = lambda text: sum(n_tokens(word.encode()) for word in words.findall(text))
    workload.load()
    left = {job.name.split("/")[1]: job.args["examples"].count("\nAnswer: ") for job in workload.jobs()}
    assert len(left) == 57
    assert {subject: n for subject, n in left.items() if n < 5} == PAPER_SHOTS
