"""LLaVA-Bench: its questions and pictures, what is shared, and models that take no pictures."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import sys
from collections import Counter

import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import run
from engine.config import EngineConfig
from engine.make import make_engine
from experiments.infinite_cache import infinite_hits
from lang import Runner
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from workloads.data import DataError
from workloads.llava import LLaVA
from workloads.llava.sample import PICTURES, draw, sample_questions
from workloads.registry import load_workload

QUESTIONS = [
    {"image": "001.jpg", "text": "What is it?", "category": "conv", "question_id": 0},
    {"image": "001.jpg", "text": "Tell more.", "category": "detail", "question_id": 1},
    {"image": "002.jpg", "text": "And this?", "category": "conv", "question_id": 2},
]
ANSWERS = [{"question_id": i, "text": f"An answer, {i}."} for i in range(3)]


@pytest.fixture(autouse=True)
def nobody_says_where(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


@pytest.fixture(scope="module")
def engine():
    return make_engine(EngineConfig(model="llava-tiny", pool_tokens=8000))


def write(folder, questions=QUESTIONS, answers=ANSWERS, pack=lambda content: content, suffix=""):
    folder.mkdir(exist_ok=True)
    for name, rows in (("questions", questions), ("answers_gpt4", answers)):
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"{name}.jsonl{suffix}").write_bytes(pack(content))
    return folder


def photographs(folder, n=4):
    folder.mkdir()
    for i in range(n):
        Image.open(io.BytesIO(draw(f"photograph {i}"))).save(folder / f"{i}.jpg")


def loaded(**kwargs):
    workload = LLaVA(**kwargs)
    workload.choose_outputs(workload.asked_outputs, random_weights=True)
    workload.load()
    return workload


def of(workload, key):
    return [job.args[key] for job in workload.jobs()]


def one_at_a_time(backend, workload):
    runner, calls = Runner(backend), []
    for job in workload.jobs():
        played = runner.start(job.program, job.args, name=job.name, sampling={"outputs": job.outputs})
        while runner.active:
            runner.step()
        assert played.status == "done", played.error
        calls += played.calls
    return calls


# ---- prompts and what they share


def test_a_prompt_is_a_users_message_of_picture_and_question(tmp_path):
    backend = MockBackend()
    workload = loaded(data_dir=str(write(tmp_path / "llava_bench")))
    calls = one_at_a_time(backend, workload)
    assert [call.text for call in calls] == [row["text"] for row in ANSWERS]
    for call, picture, row in zip(calls, of(workload, "picture"), QUESTIONS, strict=True):
        (asked, begun) = call.request.messages()
        assert asked.as_data()["role"] == "user"
        parts = asked.as_data()["content"]
        assert [part["type"] for part in parts] == ["image_url", "text"]
        assert parts[1]["text"] == row["text"]
        assert [image.data for image in call.request.images] == [picture]
        assert begun.as_data()["role"] == "assistant"
    assert [job.name for job in workload.jobs()] == ["llava/0", "llava/1", "llava/2"]
    assert of(workload, "max_tokens") == [768] * 3


def test_questions_to_one_picture_find_it_in_the_cache_and_others_never(engine, tmp_path):
    workload = loaded(data_dir=str(write(tmp_path / "llava_bench")))
    engine.flush_cache()
    calls = one_at_a_time(EngineBackend(engine), workload)
    requests = [request for call in calls for request in call.requests]
    assert [request.text for request in requests] == [row["text"] for row in ANSWERS]
    first, second, other = (request.n_cached for request in requests)
    assert first == 0
    assert second >= 64, "all of the picture's positions"
    assert other < 64, "only what stands before every picture"
    assert infinite_hits(requests) == [first, second, other]


def test_each_picture_is_another_to_the_engine(engine, data_dir):
    """The stand-ins of the real photographs: an endless cache finds each picture as often as it has more questions."""
    workload = loaded(data_dir=str(data_dir), max_tokens=1)
    engine.flush_cache()
    calls = one_at_a_time(EngineBackend(engine), workload)
    hits = [request.n_cached for call in calls for request in call.requests]
    assert len(hits) == 60
    assert sum(n >= 64 for n in hits) == 60 - 24
    assert hits == infinite_hits([request for call in calls for request in call.requests])


def test_shuffling_changes_the_order_alone():
    plain = [job.name for job in loaded().jobs()]
    shuffled = [job.name for job in loaded(order="shuffled", seed=1).jobs()]
    assert sorted(plain) == sorted(shuffled) != shuffled != plain
    assert shuffled == [job.name for job in loaded(order="shuffled", seed=1).jobs()]
    few = loaded(n_questions=3)
    assert of(few, "picture") == of(loaded(), "picture")[:3], "a picture doesn't depend on how many there are"


# ---- data


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress])
def test_files_are_found_packed_or_not(tmp_path, pack):
    write(tmp_path / "llava_bench", pack=pack, suffix=".gz" if pack is gzip.compress else "")
    for folder in (tmp_path, tmp_path / "llava_bench"):
        assert of(loaded(data_dir=str(folder)), "question") == [row["text"] for row in QUESTIONS]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"answers": ANSWERS[:2]}, r"questions.jsonl, line 3: .*answers_gpt4.jsonl has no answer to question 2"),
        ({"answers": [{"question_id": 0, "text": ""}]}, r"answers_gpt4.jsonl, line 1: the answer is empty"),
        ({"questions": [*QUESTIONS, QUESTIONS[0]]}, r"questions.jsonl, line 4: question 0 comes a second time"),
        ({"questions": [{"image": "1.jpg"}]}, r"questions.jsonl, line 1: no field 'question_id'"),
        ({"questions": []}, r"questions.jsonl: no questions in it"),
    ],
)
def test_a_broken_line_is_named(tmp_path, files, message):
    with pytest.raises(DataError, match=message):
        loaded(data_dir=str(write(tmp_path / "llava_bench", **files)))


def test_a_missing_file_is_named(tmp_path):
    write(tmp_path / "llava_bench")
    (tmp_path / "llava_bench" / "answers_gpt4.jsonl").unlink()
    with pytest.raises(DataError, match=r"no answers_gpt4.jsonl or answers_gpt4.jsonl.gz in"):
        loaded(data_dir=str(tmp_path))


def test_the_real_pictures_are_taken_where_they_are(tmp_path):
    folder = write(tmp_path / "llava_bench")
    given = tmp_path / "given"
    given.mkdir()
    for name in ("001.jpg", "002.jpg"):
        (given / name).write_bytes(draw(f"real {name}"))
    workload = loaded(data_dir=str(folder), image_dir=str(given))
    expected = [draw("real 001.jpg"), draw("real 001.jpg"), draw("real 002.jpg")]
    assert of(workload, "picture") == expected
    assert (workload.data.origin, workload.data.note) == ("files", "")
    shutil.move(given, folder / "images")
    assert of(loaded(data_dir=str(folder)), "picture") == expected
    (folder / "images" / "002.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"002.jpg: no picture that can be read"):
        loaded(data_dir=str(folder))
    (folder / "images" / "002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 pictures aren't in .*: 002.jpg"):
        loaded(data_dir=str(folder))
    with pytest.raises(DataError, match=r"workload.image_dir=.*nowhere: 2 of 2 pictures aren't in"):
        loaded(data_dir=str(folder), image_dir=str(tmp_path / "nowhere"))


def test_photographs_stand_in_and_the_note_says_so(tmp_path):
    questions = [{**QUESTIONS[0], "image": f"{i:03}.jpg", "question_id": i} for i in range(24)]
    answers = [{"question_id": i, "text": "yes"} for i in range(24)]
    write(tmp_path / "llava_bench", questions, answers)
    photographs(tmp_path / "sample_images")
    workload = loaded(data_dir=str(tmp_path))
    assert len(set(of(workload, "picture"))) == 24
    assert of(workload, "picture") == of(loaded(data_dir=str(tmp_path)), "picture")
    assert "24 others stand in, made from 4 photographs" in workload.data.note
    assert workload.data.origin == "files"
    for path in list((tmp_path / "sample_images").iterdir())[1:]:
        path.unlink()
    with pytest.raises(DataError, match=r"24 pictures are needed, 1 photographs of .* give 6; set workload.image_dir"):
        loaded(data_dir=str(tmp_path))


def test_without_any_pictures_they_are_drawn_and_the_note_says_so(tmp_path):
    workload = loaded(data_dir=str(write(tmp_path / "llava_bench")))
    assert of(workload, "picture") == [draw("001.jpg"), draw("001.jpg"), draw("002.jpg")]
    assert workload.data.origin == "sample"
    assert "pictures drawn by our own code" in workload.data.note


def test_the_sample_has_several_questions_to_each_of_24_pictures():
    workload = loaded(n_questions=None)
    assert len(workload.jobs()) == len(sample_questions())
    per_picture = Counter(of(workload, "picture"))
    assert len(per_picture) == PICTURES
    assert max(per_picture.values()) > 2
    assert all(job.args["recorded"] for job in workload.jobs())
    assert "not LLaVA-Bench" in workload.data.note


def test_real_data_has_60_questions_to_24_pictures(data_dir):
    workload = loaded(data_dir=str(data_dir))
    assert len(workload.jobs()) == 60
    assert len(set(of(workload, "picture"))) == 24


# ---- settings and models


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"order": "by_size"}, "order='by_size' is not allowed: it must be one of by_picture, shuffled"),
        ({"n_questions": 0}, "n_questions=0 is not allowed"),
        ({"max_tokens": 0}, "max_tokens=0 is not allowed"),
    ],
)
def test_bad_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_workload("llava", kwargs)


def test_warming_up_warms_nothing_that_is_measured():
    workload = loaded()
    assert {job.namespace for job in workload.warmup()} == {"warmup"}
    assert not {job.args["picture"] for job in workload.warmup()} & set(of(workload, "picture"))


def invoke(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    GlobalHydra.instance().clear()
    return run.main()


def test_a_run_chooses_a_model_that_takes_pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert invoke(monkeypatch, "workload=llava", "policy=lru", "workload.n_questions=4", "workload.max_tokens=4") == 0
    (summary,) = tmp_path.glob("outputs/llava/lru/*/summary.json")
    told = json.loads(summary.read_text())
    assert (told["model"], told["programs"], told["errors"]) == ("llava-tiny", 4, 0)
    assert told["hit_rate"] > 0


def test_a_model_that_takes_none_is_refused_before_anything_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert invoke(monkeypatch, "workload=llava", "policy=lru", "model=tiny") == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "its prompts have pictures, and model=tiny takes none; use model=llava-tiny, llava-small or llava-7b" in line
    assert not list(tmp_path.glob("outputs/*/*/*"))
