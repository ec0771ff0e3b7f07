"""DSPy's retrieval-augmented answers: data in every form, the messages DSPy would send, scores, recorded calls."""

from __future__ import annotations

import gzip
import json
import os
from typing import Any

import dspy
import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.dspy_engine import DSPyEngine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError, FromHub
from workloads.dspy_rag import DSPyRAG
from workloads.dspy_rag import data as rag_data
from workloads.dspy_rag.pipeline import exact_match, example
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
SMALL: dict[str, Any] = {"n_train": 4, "n_full_demos": 1, "n_demos": 2, "k": 1}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)


def published(n=7):
    """Each about a hill of its own, and a page that nobody asks about."""
    return [
        {
            "id": str(i),
            "question": f"How high is hill number{i}?",
            "answer": f"{i}00 metres",
            "supporting_facts": {"title": [f"Hill {i}"], "sent_id": [1]},
            "context": {
                "title": [f"Hill {i}", f"Lake {i}"],
                "sentences": [["A hill.", f" The hill number{i} is {i}00 metres high."], [f"A lake of {i} boats."]],
            },
        }
        for i in range(n)
    ]


def write(folder, rows, name="hotpotqa_distractor_100.jsonl", packed=False):
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


def loaded(outputs="auto", random_weights=True, **settings):
    workload = DSPyRAG(**settings)
    workload.choose_outputs(outputs, random_weights)
    workload.load()
    return workload


@pytest.mark.parametrize("packed", [False, True])
def test_the_messages_are_instructions_demonstrations_passages_and_question(tmp_path, packed):
    workload = loaded(data_dir=write(tmp_path, published(), packed=packed), **SMALL)
    assert workload.data.origin == "files"
    first = workload.asked()[0]
    assert first.question == "How high is hill number4?"
    messages = workload.rag.messages(first.question, workload.rag.retrieve(first.question))
    assert [message.role for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert "Answer the question in a few words, from what the passages say." in messages[0].content
    labeled, full = messages[1:3], messages[3:5]
    assert labeled[0].content.startswith("This is an example of the task, though some input or output fields are not")
    assert full[0].content == (
        '[[ ## context ## ]]\n["Hill 0 | A hill. The hill number0 is 000 metres high."]\n\n'
        "[[ ## question ## ]]\nHow high is hill number0?"
    )
    assert full[1].content.rstrip() == (
        "[[ ## reasoning ## ]]\nThe hill number0 is 000 metres high. So the answer is 000 metres.\n\n"
        "[[ ## answer ## ]]\n000 metres\n\n[[ ## completed ## ]]"
    )
    assert messages[5].content.startswith('[[ ## context ## ]]\n["Hill 4 | A hill. The hill number4 is 400 metres')


def test_a_job_is_one_call_whose_prompt_is_those_messages(tmp_path):
    workload = loaded(data_dir=write(tmp_path, published()), **SMALL)
    backend = MockBackend()
    runs = play(workload, backend)
    assert [run.name for run in runs] == [f"dspy_rag/{i}" for i in range(3)]
    assert len(backend.log) == 3
    for run, question in zip(runs, workload.asked()):
        messages = workload.rag.messages(question.question, workload.rag.retrieve(question.question))
        assert run.state.messages()[:-1] == [{"role": m.role, "content": m.content} for m in messages]
        assert run.state["completion"] == workload.rag.completion(question)


def test_training_questions_are_not_asked(tmp_path):
    workload = loaded(data_dir=write(tmp_path, published()), **SMALL)
    shown = {demo.question for demo in workload.rag.program.answer.predict.demos}
    assert len(shown) == 2
    assert shown.isdisjoint(question.question for question in workload.asked())


def test_dspy_evaluating_with_threads_sends_the_same_tokens_and_gets_the_same_answers(tmp_path):
    """On the sample, greedy, in float64: what batches share doesn't change the answers. The server's plain template
    ends an answer with the end token, the language's doesn't: so DSPy gets the language's as a file."""
    (tmp_path / "plain.jinja").write_text(
        r"{{ bos_token }}{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n\n' }}{% endfor %}"
        r"{{ '### assistant\n' }}"
    )
    workload = loaded("free", n_train=4, n_full_demos=1, n_demos=2, n_questions=6, max_tokens=6)
    config = EngineConfig(model="tiny", device="cpu", dtype="float64", pool_tokens=16384)
    ours, theirs = {}, {}
    engine = make_engine(config)
    engine.on_finish.append(lambda request: ours.update({tuple(request.key.tolist()): request.output}))
    runs = play(workload, EngineBackend(engine))
    engine = make_engine(config)
    engine.on_finish.append(lambda request: theirs.update({tuple(request.key.tolist()): request.output}))
    with DSPyEngine(engine, chat_template=tmp_path / "plain.jinja") as served:
        lm = dspy.LM("radixlab/tiny", engine=served, cache=False, temperature=0, max_tokens=6, num_retries=0)
        with dspy.context(lm=lm, rm=workload.rag.search, adapter=workload.rag.adapter):
            evaluate = dspy.Evaluate(
                devset=[example(question) for question in workload.asked()],
                metric=exact_match,
                num_threads=32,
                max_errors=100,
                display_progress=False,
            )
            score = evaluate(workload.rag.program).score
        answers = {entry["outputs"][0] for entry in lm.history}
    assert len(ours) == 6
    assert ours == theirs
    assert answers == {run.state["completion"] for run in runs}
    assert score == workload.score(runs).value * 100


def test_on_the_engine_recorded_answers_come_out():
    workload = loaded(n_train=4, n_full_demos=1, n_demos=2, n_questions=3)
    engine = make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=16384))
    runs = play(workload, EngineBackend(engine))
    assert [run.state["completion"] for run in runs] == [workload.rag.completion(q) for q in workload.asked()]
    assert runs[-1].state.get_meta_info("completion")["cached_tokens"] > 0
    assert workload.score(runs) == ("exact match", 1.0, 3)


def test_the_score_is_dspys_exact_match(tmp_path):
    workload = loaded("free", data_dir=write(tmp_path, published()), **SMALL)

    def score(answer):
        reply = f"[[ ## reasoning ## ]]\nSo.\n\n[[ ## answer ## ]]\n{answer}\n\n[[ ## completed ## ]]"
        return workload.score(play(workload, MockBackend(reply=lambda _: reply)))

    assert score("The 500 Metres.") == ("exact match", 1 / 3, 3)
    assert score("500") == ("exact match", 0.0, 3)
    in_another_form = play(workload, MockBackend(reply=lambda _: "500 metres"))
    assert workload.score(in_another_form) == ("exact match", 0.0, 3)
    assert workload.score([]) is None


@pytest.mark.parametrize("retriever", ["bm25", "embeddings"])
def test_the_page_that_is_asked_about_is_found(tmp_path, retriever):
    workload = loaded(data_dir=write(tmp_path, published()), retriever=retriever, **{**SMALL, "k": 2})
    found = workload.rag.retrieve("How high is hill number5?")
    assert len(found) == 2
    assert "Hill 5 | A hill. The hill number5 is 500 metres high." in found


def test_demonstrations_give_way_where_the_context_is_short(tmp_path):
    folder = write(tmp_path, published())
    whole = loaded(data_dir=folder, max_tokens=10, **SMALL)
    assert whole.rag.n_demos == 2

    def longest(workload):
        return max(workload.count_tokens(run.state.text()) for run in play(workload, MockBackend()))

    room = longest(whole) - 40
    short = loaded(data_dir=folder, max_tokens=10, max_context_tokens=room, **SMALL)
    assert short.rag.n_demos == 1
    assert "context" in short.rag.program.answer.predict.demos[0], "the plain one goes first"
    assert short.data.note == f"1 demonstrations dropped for max_context_tokens={room}"
    with pytest.raises(DataError, match="max_context_tokens=50 is too few: without any demonstration the longest"):
        loaded(data_dir=folder, max_context_tokens=50, **SMALL)


def test_the_hub_gives_the_same_questions(tmp_path, monkeypatch):
    def hub(dataset, config, splits):
        assert (dataset, config, splits) == ("hotpotqa/hotpot_qa", "distractor", ("validation",))
        return FromHub({"validation": published()})

    monkeypatch.setattr(rag_data, "from_hub", hub)
    workload = loaded(**SMALL)
    assert workload.data.origin == "hub"
    assert workload.asked() == loaded(data_dir=write(tmp_path, published()), **SMALL).asked()


def test_without_data_a_sample_is_made_and_announced():
    workload = loaded()
    assert workload.data.origin == "sample"
    assert "not HotpotQA" in workload.data.note
    assert workload.data.sha256.startswith("79679d49686b77bf"), "the same on every machine; a change must be meant"
    assert len(workload.jobs()) == 24
    assert workload.rag.n_demos == 16
    calls = loaded(kind="recorded", n_questions=None)
    assert calls.data.sha256.startswith("cc13040de3dccb20")
    assert len(calls.jobs()) == 72


def call(time, prompt, text="said"):
    request = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 150, "temperature": 0.0}
    return {"time": time, "request": request, "choices": [{"text": text, "finish_reason": "stop"}]}


def test_recorded_calls_come_in_the_order_in_which_they_were_made_or_by_template(tmp_path):
    rows = [call(3.0, "Find.\n\n---\n\nb"), call(1.0, "Find.\n\n---\n\na"), call(2.0, "Answer.\n\n---\n\na", " yes")]
    folder = write(tmp_path, rows, "turbo_lm_calls.jsonl", packed=True)

    def prompts(**settings):
        backend = MockBackend()
        runs = play(loaded(data_dir=folder, kind="recorded", **settings), backend)
        assert len(backend.log) == len(runs)
        return [
            (run.state.messages()[0]["content"].replace("\n\n---\n\n", ""), run.state["completion"]) for run in runs
        ]

    assert prompts() == [("Find.a", "said"), ("Answer.a", " yes"), ("Find.b", "said")]
    assert prompts(order="by_template") == [("Find.a", "said"), ("Find.b", "said"), ("Answer.a", " yes")]
    assert prompts(n_questions=1) == [("Find.a", "said")]


def test_calls_without_room_are_left_out_and_counted(tmp_path):
    rows = [call(1.0, "short"), call(2.0, "long " * 200)]
    folder = write(tmp_path, rows, "turbo_lm_calls.jsonl")
    workload = loaded(data_dir=folder, kind="recorded", max_context_tokens=60)
    assert len(workload.jobs()) == 1
    assert workload.data.note == "1 of 2 calls left out: longer than 60 tokens"
    with pytest.raises(DataError, match="max_context_tokens=2 leaves no recorded call"):
        loaded(data_dir=folder, kind="recorded", max_context_tokens=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, r"100.jsonl, line 2: the question or the answer is empty"),
        ({"answer": None}, r"line 2: field 'answer' is NoneType, str is needed"),
        ({"context": {"title": ["a"], "sentences": []}}, "line 2: supporting_facts or context have another form"),
        ({"supporting_facts": {"title": ["b"], "sent_id": [0]}}, "line 2: supporting_facts or context have another"),
    ],
)
def test_a_broken_question_is_named(tmp_path, change, message):
    first, second = published(2)
    with pytest.raises(DataError, match=message):
        loaded(data_dir=write(tmp_path, [first, {**second, **change}]), **SMALL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": []}, r"calls.jsonl, line 1: one choice is needed, not \[\]"),
        ({"choices": [{"text": ""}]}, "line 1: the recorded text is empty"),
        ({"request": {"messages": [], "max_tokens": 3}}, "line 1: one message of the user's is needed"),
        ({"request": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 0}}, "max_tokens=0; it must be 1"),
    ],
)
def test_a_broken_call_is_named(tmp_path, change, message):
    folder = write(tmp_path, [{**call(1.0, "a"), **change}], "turbo_lm_calls.jsonl")
    with pytest.raises(DataError, match=message):
        loaded(data_dir=folder, kind="recorded")


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no hotpotqa_distractor_100\.jsonl or .*\.gz in"):
        loaded(data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"no turbo_lm_calls\.jsonl or .*\.gz in"):
        loaded(data_dir=str(tmp_path), kind="recorded")
    with pytest.raises(DataError, match="no questions in it"):
        loaded(data_dir=write(tmp_path, []))
    with pytest.raises(DataError, match="no calls in it"):
        loaded(data_dir=write(tmp_path, [], "turbo_lm_calls.jsonl"), kind="recorded")
    with pytest.raises(DataError, match="n_train=20 leaves no question of 7; give fewer"):
        loaded(data_dir=write(tmp_path, published()))


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "dead"},
        {"retriever": "colbert"},
        {"order": "random"},
        {"n_train": 0},
        {"k": 0},
        {"n_demos": 3},
        {"max_context_tokens": 1},
        {"retrieval_seconds": -1},
        {"temperature": "hot"},
    ],
)
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("dspy_rag", settings)


def test_without_dspy_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "workloads.dspy_rag.pipeline", None)
    with pytest.raises(DataError, match=r"DSPy isn't installed .*: pip install 'radixlab\[rag\]', or kind=recorded"):
        loaded()


def test_the_real_files():
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: no real data on this machine")
    workload = loaded(data_dir=REAL)
    assert len(workload.jobs()) == 80
    assert workload.rag.n_demos == 16
    assert workload.data.sha256.startswith("fc46023d71a5d7ab"), "the sum that sha256sum gives for the copy"
    assert all(workload.rag.right(workload.rag.completion(question), question) for question in workload.asked())
    assert len(loaded(data_dir=REAL, kind="recorded", n_questions=None).jobs()) == 430
