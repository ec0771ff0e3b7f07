"""Questions about long documents: corpora in every form, cutting, prompts in both encodings, the score."""

from __future__ import annotations

import gzip
import json
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.long_doc_qa import LongDocQA
from workloads.long_doc_qa.questions import Asked, questions, segments, sentences
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
SENTENCES = [f"Sentence number{i} says that the house number{i} is near the green gate of the town." for i in range(12)]


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def words(text):
    return len(text.split())


def city(title="Rome", text=None):
    return {"title": title, "text": " ".join(SENTENCES) if text is None else text}


def write(folder, content, name="cities.jsonl", packed=False):
    content = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    path = folder / f"{name}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(folder)


def loaded(outputs="auto", **given_):
    chosen = {"n_documents": 1, "n_segments": 3, "segment_tokens": 32, "n_questions": 2, **given_}
    workload = LongDocQA(**chosen)
    workload.count_tokens = words
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["concatenated", "plain"])
def test_the_prompt_is_instruction_parts_and_question_in_both_encodings(tmp_path, packed, encoding):
    workload = loaded(data_dir=write(tmp_path, [city()], packed=packed), encoding=encoding)
    assert workload.data.origin == "files"
    backend = MockBackend()
    runs = play(workload, backend)
    assert [run.name for run in runs] == ["long_doc_qa/0/0", "long_doc_qa/0/1"]
    assert len(backend.log) == 2, "a question is one call: parts are read, nothing is generated in them"
    job = workload.jobs()[0]
    question, answer = job.args["question"], job.args["recorded"]
    assert runs[0].state.text() == (
        "Here are parts of a document. Read them all, then answer the question about them in a few words.\n"
        "Title: Rome\n\n"
        f"Part 1:\n{SENTENCES[0]} {SENTENCES[1]}\n\n"
        f"Part 2:\n{SENTENCES[2]} {SENTENCES[3]}\n\n"
        f"Part 3:\n{SENTENCES[4]} {SENTENCES[5]}\n\n"
        f"Question: {question}\nAnswer:{answer}"
    )
    assert backend.log[0].request.has_joined_branches == (encoding == "concatenated")
    assert runs[0].state["answer"] == answer


def test_a_question_asks_how_a_sentence_goes_on():
    (asked,) = questions([SENTENCES[0]], 1, random.Random(0), words, 3)
    assert asked == Asked(
        'How does the sentence go on that begins "Sentence number0 says that the house number0 is near the green"?',
        "gate of the",
    )
    assert questions([SENTENCES[0], SENTENCES[0]], 2, random.Random(0), words, 3) == [], "twice there: no answer"
    assert questions(["Too short."], 1, random.Random(0), words, 3) == []


def test_questions_are_spread_over_the_parts():
    parts = [" ".join(SENTENCES[i : i + 3]) for i in (0, 3, 6, 9)]
    asked = questions(parts, 4, random.Random(1), words, 9)
    assert sorted(next(i for i, part in enumerate(parts) if one.question[46:60] in part) for one in asked) == [
        0,
        1,
        2,
        3,
    ]


@settings(max_examples=40)
@given(st.lists(st.text("ab .\n", min_size=1, max_size=60), max_size=12), st.integers(2, 20), st.integers(1, 5))
def test_segments_are_the_text_in_order_and_none_is_too_long(pieces, size, most):
    text = ". ".join(pieces)
    found = segments(text, size, most, words)
    assert len(found) <= most
    assert all(words(one) <= size for one in found)
    assert "".join(text.split()).startswith("".join("".join(found).split()))
    assert "".join("".join(sentences(text)).split()) == "".join(text.split())


def test_documents_that_are_too_short_are_passed_over(tmp_path):
    folder = write(tmp_path, [city("Short", SENTENCES[0]), city("Long"), city("Too")])
    assert "Title: Long\n" in loaded(data_dir=folder).jobs()[0].args["beginning"]
    assert len(loaded(data_dir=folder, n_documents=None).jobs()) == 4
    with pytest.raises(DataError, match=r"only 2 of 3 documents have n_segments=3 segments of 32 tokens; give fewer"):
        loaded(data_dir=folder, n_documents=3)
    with pytest.raises(DataError, match=r"Long: n_questions=40, but its segments have 6 sentences"):
        loaded(data_dir=folder, n_questions=40)


NOVEL = "# Book\n\n## I\n### [ 1 ]\n\nFirst chapter. \n\n\nIts end.\n\n## II\n### [ 2 ]\n\nSecond.\n"
ARTICLES = " \n = Birds = \n \n They fly . \n\n = = Kinds = = \n \n Many . \n = Fish = \n They swim . \n"


@pytest.mark.parametrize(
    ("corpus", "file", "content", "titles", "second"),
    [
        ("ulysses", "ulysses.md", NOVEL, ["Ulysses, chapter 1", "Ulysses, chapter 2"], "Second."),
        ("wikitext2", "wikitext2_test.txt", ARTICLES, ["Birds", "Fish"], "They swim ."),
    ],
)
def test_corpora_are_cut_into_documents(tmp_path, corpus, file, content, titles, second):
    from workloads.long_doc_qa.data import load_documents

    found = load_documents(write(tmp_path, content, file), corpus)
    assert [one.title for one in found.documents] == titles
    assert found.documents[1].text == second
    assert found.documents[0].text in ("First chapter.\nIts end.", "They fly .\n= = Kinds = =\nMany .")


def test_segments_are_left_out_where_the_context_is_short(tmp_path):
    folder = write(tmp_path, [city()])
    workload = loaded(data_dir=folder, max_context_tokens=130)
    backend = MockBackend()
    assert all(words(run.state.text()) <= 130 for run in play(workload, backend))
    assert len(workload.jobs()[0].args["parts"]) == 2
    assert workload.data.note == "1 segments left out for max_context_tokens=130"
    with pytest.raises(DataError, match="max_context_tokens=40 is too few for one segment"):
        loaded(data_dir=folder, max_context_tokens=40)


def test_the_score_is_the_share_of_answers_that_begin_with_the_right_words(tmp_path):
    workload = loaded("free", data_dir=write(tmp_path, [city()]))
    right = {job.args["question"]: job.args["recorded"] for job in workload.jobs()}

    def score(change):
        def reply(prompt):
            return change(right[prompt.rpartition("Question: ")[2].removesuffix("\nAnswer:")])

        return workload.score(play(workload, MockBackend(reply=reply)))

    assert score(lambda text: text) == ("right words", 1.0, 2)
    assert score(lambda text: f"{text.upper()}, and more") == ("right words", 1.0, 2)
    assert score(lambda text: text + "s") == ("right words", 0.0, 2)
    assert workload.score([]) is None


@pytest.mark.parametrize("encoding", ["concatenated", "plain"])
def test_on_the_engine_the_second_question_finds_the_document(encoding):
    workload = LongDocQA(n_documents=1, n_segments=3, segment_tokens=100, n_questions=2, encoding=encoding)
    engine = make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=4096))
    workload.count_tokens = lambda text: len(engine.tokenizer.encode(text))
    workload.choose_outputs("auto", random_weights=True)
    workload.load()
    backend = EngineBackend(engine)
    found = []
    for job in workload.jobs():
        state = job.program.run(**job.args, backend=backend, outputs=job.outputs)
        assert state["answer"] == job.args["recorded"]
        found.append(state.get_meta_info("answer"))
    assert found[0]["cached_tokens"] < found[0]["prompt_tokens"] / 4
    assert found[1]["cached_tokens"] > found[1]["prompt_tokens"] * 3 / 4


def test_without_data_a_sample_is_made_and_announced():
    workload = LongDocQA()
    workload.load()
    assert workload.data.origin == "sample"
    assert "not the corpus wikipedia_cities" in workload.data.note
    assert workload.data.sha256.startswith("c4572725445671fc"), "the same on every machine; a change must be meant"
    assert len(workload.jobs()) == 20


def test_broken_and_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no cities\.jsonl or cities\.jsonl\.gz in"):
        loaded(data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"cities.jsonl, line 2: no field 'text'"):
        loaded(data_dir=write(tmp_path, [city(), {"title": "Oslo"}]))
    with pytest.raises(DataError, match="no document in it"):
        loaded(data_dir=write(tmp_path, "", "ulysses.md"), corpus="ulysses")


@pytest.mark.parametrize(
    "given_",
    [{"corpus": "bible"}, {"encoding": "both"}, {"n_segments": 0}, {"max_tokens": 1}, {"segment_tokens": "long"}],
)
def test_bad_settings_are_refused(given_):
    with pytest.raises(ValueError, match=f"{next(iter(given_))}=.* is not allowed"):
        load_workload("long_doc_qa", given_)


@pytest.mark.parametrize("corpus", ["wikipedia_cities", "ulysses", "wikitext2"])
def test_the_real_files(corpus):
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: no real data on this machine")
    workload = LongDocQA(data_dir=REAL, corpus=corpus, n_segments=5)
    workload.load()
    assert len(workload.jobs()) == 20
    for job in workload.jobs():
        text = "".join(job.args["parts"])
        beginning = job.args["question"].split('"', 1)[1].removesuffix('"?')
        assert " ".join(text.split()).count(f"{beginning}{job.args['recorded']}") >= 1
