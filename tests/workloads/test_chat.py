"""Chat: its texts and lengths, turn after turn, waits, every form of the recorded data, what fits."""

from __future__ import annotations

import gzip
import json
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.hints import ConversationEnd
from tests.workloads.playing import play
from workloads.chat import Chat
from workloads.data import DataError
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
"""Read before a fixture hides it."""
ASKED = [
    {"question_id": 81, "category": "writing", "turns": ["Write about a lake.", "Now in one line."]},
    {"question_id": 82, "category": "math", "turns": ["What is 2 + 3?", "And twice that?"]},
]
ANSWERED = [{"question_id": 82, "choices": [{"index": 0, "turns": ["It is 5.", "Ten it is."]}]}]
SPOKEN = [
    {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "Who are you?"},
            {"from": "gpt", "value": "A program that answers."},
            {"from": "human", "value": "Since when?"},
            {"from": "gpt", "value": "Since today."},
        ],
    },
    {"id": "b", "conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good morning."}]},
]
CALLS = [
    {"timestamp": 1, "session_id": "x", "input": "Mend it.\n", "output": "ls\n"},
    {"timestamp": 2, "session_id": "y", "input": "Find it.\n", "output": "find .\n"},
    {"timestamp": 3, "session_id": "x", "input": "Mend it.\na.py b.py\n", "output": "cat a.py\n"},
    {"timestamp": 4, "session_id": "x", "input": "Another thing.\n", "output": "pwd\n"},
    {"timestamp": 5, "session_id": "x", "input": "Another thing.\n/home\n", "output": "cd /\n"},
]


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def write(folder: Path, files: Mapping[str, Any], packed: bool = False) -> str:
    """Lists as JSON lines, but for .json; text as it is."""
    for name, content in files.items():
        path = folder / (name + ".gz" if packed else name)
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            whole = name.endswith(".json")
            content = json.dumps(content) if whole else "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    return str(folder)


def mt_bench(folder: Path, packed: bool = False, references: Any = ANSWERED) -> str:
    files = {"mt_bench/mt_bench_question.jsonl": ASKED, "mt_bench/mt_bench_reference_gpt-4.jsonl": references}
    return write(folder, files, packed)


def words(text: str) -> int:
    return len(text.split())


def characters(text: str) -> int:
    return len(text)


def loaded(outputs: str = "auto", count: Any = None, **settings: Any) -> Chat:
    synthetic = settings.get("kind", "short") in ("short", "long")
    workload = Chat(**settings)
    workload.count_tokens = count or (characters if synthetic else words)
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


def turns(workload: Chat) -> list[list[Any]]:
    return [list(job.args["turns"]) for job in workload.jobs()]


@pytest.mark.parametrize(("kind", "least", "most"), [("short", 4, 8), ("long", 256, 512)])
def test_synthetic_lengths_are_the_papers(kind: str, least: int, most: int) -> None:
    workload = loaded(kind=kind, count=characters)
    assert workload.outputs == "fixed"
    assert workload.data.origin == "made"
    assert [len(one) for one in turns(workload)] == [4] * 20
    for one in turns(workload):
        for turn in one:
            assert 256 <= len(turn.said) <= 512
            assert turn.said.isalnum()
            assert least <= turn.max_tokens <= most
    lengths = [turn.max_tokens for one in turns(workload) for turn in one]
    assert {min(lengths), max(lengths)} == {4, 8} if kind == "short" else len(set(lengths)) > 40
    assert len({one[0].said[:8] for one in turns(workload)}) == 20, "no two conversations begin alike"


def test_the_seed_decides_all_texts_and_lengths() -> None:
    assert turns(loaded(seed=1)) == turns(loaded(seed=1))
    assert turns(loaded(seed=1)) != turns(loaded(seed=2))
    assert turns(loaded(n_conversations=2)) == turns(loaded(n_conversations=3))[:2]


def test_each_turn_goes_on_from_all_that_was_said() -> None:
    workload = loaded("free", n_conversations=1, n_turns=3)
    backend = MockBackend(reply=lambda prompt: f"<{len(prompt)}>")
    play(workload, backend)
    a, b, c = (turn.said for turn in turns(workload)[0])
    first, second = (call.text for call in backend.log[:2])
    assert [call.prompt for call in backend.log] == [a, a + first + b, a + first + b + second + c]
    assert backend.clock.steps == 3
    for call in backend.log:
        assert call.name in ("answer0", "answer1", "answer2")


def test_synthetic_outputs_have_exactly_the_drawn_lengths_on_the_engine() -> None:
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    workload = loaded(n_conversations=2, n_turns=2, count=lambda text: len(engine.tokenizer.encode(text)))
    backend = EngineBackend(engine)
    for run, one in zip(play(workload, backend), turns(workload), strict=True):
        said = [run.state.get_meta_info(f"answer{i}")["completion_tokens"] for i in range(2)]
        assert said == [turn.max_tokens for turn in one]
        questions = [len(engine.tokenizer.encode(turn.said)) for turn in one]
        assert all(256 <= n <= 512 for n in questions)
        second = run.state.get_meta_info("answer1")
        # all of the first turn but its answer's last token, whose KV was never computed, and what merges at the border
        assert second["cached_tokens"] >= questions[0] + said[0] - 3


def test_the_program_tells_that_its_conversation_has_ended() -> None:
    backend = MockBackend()
    play(loaded(n_conversations=2, n_turns=1), backend)
    assert sorted(backend.hints) == [ConversationEnd("chat/0"), ConversationEnd("chat/1")]
    assert {call.tags.conversation for call in backend.log} == {"chat/0", "chat/1"}


def test_users_think_before_every_turn_but_the_first() -> None:
    backend = MockBackend()
    workload = loaded(n_conversations=1, n_turns=2, think_s=100)
    play(workload, backend)
    first, second = turns(workload)[0]
    assert first.think_s == 0
    assert second.think_s > 1
    assert second.think_s < backend.clock.steps <= second.think_s + 3


def test_thinking_times_are_lognormal_with_the_mean_that_is_asked() -> None:
    workload = loaded(n_conversations=150, n_turns=5, think_s=30, count=characters)
    waits = [turn.think_s for one in turns(workload) for turn in one[1:]]
    assert statistics.fmean(waits) == pytest.approx(30, rel=0.1)
    assert statistics.stdev(waits) == pytest.approx(30, rel=0.25)
    assert statistics.median(waits) == pytest.approx(30 / 2**0.5, rel=0.1)


@pytest.mark.parametrize("packed", [False, True])
def test_mt_bench_is_asked_in_roles(tmp_path: Path, packed: bool) -> None:
    workload = loaded(kind="mt_bench", data_dir=mt_bench(tmp_path, packed), system="Be brief.")
    assert workload.outputs == "recorded"
    assert workload.data.origin == "files"
    backend = MockBackend()
    _, run = play(workload, backend)
    assert run.state.messages() == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "It is 5."},
        {"role": "user", "content": "And twice that?"},
        {"role": "assistant", "content": "Ten it is."},
    ]
    assert backend.log[1].prompt == ("### system\nBe brief.\n\n### user\nWhat is 2 + 3?\n\n### assistant\n")


def test_questions_without_a_reference_are_answered_at_full_length(tmp_path: Path) -> None:
    folder = mt_bench(tmp_path)
    for outputs in ("recorded", "fixed"):
        workload = loaded(outputs, kind="mt_bench", data_dir=folder, max_tokens=40)
        backend = MockBackend()
        play(workload, backend)
        lengths = {
            call.prompt.count("user"): call.meta["completion_tokens"] for call in backend.log if "lake" in call.prompt
        }
        assert lengths.keys() == {1, 2}
        assert all(38 <= n <= 40 for n in lengths.values())
        if outputs == "fixed":
            assert set(lengths.values()) == {40}
            assert turns(workload)[0][0].answer is None


def test_the_published_names_of_the_files_are_known_and_references_may_be_missing(tmp_path: Path) -> None:
    folder = write(tmp_path, {"question.jsonl": ASKED})
    assert [turn.said for turn in turns(loaded(kind="mt_bench", data_dir=folder))[1]] == ASKED[1]["turns"]
    write(tmp_path, {"gpt-4.jsonl": ANSWERED})
    assert turns(loaded(kind="mt_bench", data_dir=folder))[1][0].answer == "It is 5."


@pytest.mark.parametrize("packed", [False, True])
def test_recorded_conversations_come_out_of_the_engine(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path, {"mt_bench/dummy_conversation.json": SPOKEN}, packed)
    workload = loaded(kind="conversations", data_dir=folder)
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=4096))
    first, second = play(workload, EngineBackend(engine))
    assert (first.state["answer0"], first.state["answer1"]) == ("A program that answers.", "Since today.")
    assert second.state["answer0"] == "Good morning."
    assert first.state.get_meta_info("answer1")["cached_tokens"] > 20


@pytest.mark.parametrize("packed", [False, True])
def test_agents_calls_have_the_recorded_prompts_and_their_answers_stay_outside(tmp_path: Path, packed: bool) -> None:
    folder = write(tmp_path, {"trace_lmcache_agent/miniswe.jsonl": CALLS}, packed)
    workload = loaded(kind="agent", data_dir=folder)
    backend = MockBackend()
    play(workload, backend)
    assert sorted(call.prompt for call in backend.log) == sorted(str(row["input"]) for row in CALLS)
    by_prompt = {call.prompt: call.text for call in backend.log}
    assert by_prompt == {row["input"]: row["output"] for row in CALLS}


def test_an_agent_that_begins_anew_is_another_session(tmp_path: Path) -> None:
    folder = write(tmp_path, {"trace_lmcache_agent/miniswe.jsonl": CALLS})
    sessions = [[turn.said for turn in one] for one in turns(loaded(kind="agent", data_dir=folder))]
    assert sessions == [["Mend it.\n", "a.py b.py\n"], ["Find it.\n"], ["Another thing.\n", "/home\n"]]


def test_an_agents_next_call_waits_for_the_answer(tmp_path: Path) -> None:
    folder = write(tmp_path, {"trace_lmcache_agent/miniswe.jsonl": CALLS[:1] + CALLS[2:3]})
    backend = MockBackend(steps_per_call=5)
    play(loaded(kind="agent", data_dir=folder), backend)
    assert backend.clock.steps == 10


def test_later_turns_are_left_out_until_a_conversation_fits() -> None:
    whole = loaded(kind="conversations", max_tokens=20)
    limit = 110
    cut = loaded(kind="conversations", max_tokens=20, max_context_tokens=limit)
    n, m = (sum(map(len, turns(one))) for one in (cut, whole))
    assert 0 < n < m
    assert f"to fit into {limit} tokens, {n} of {m} turns are asked" in cut.data.note
    for short, long in zip(turns(cut), turns(whole), strict=True):
        assert short == long[: len(short)]


@pytest.mark.parametrize("outputs", ["recorded", "fixed", "free"])
@pytest.mark.parametrize(
    ("kind", "limit"),
    [("short", 900), ("mt_bench", 64), ("mt_bench", 300), ("conversations", 250), ("agent", 64), ("agent", 400)],
)
def test_prompt_and_output_never_exceed_the_context_that_is_asked_for(kind: str, limit: int, outputs: str) -> None:
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=8192))
    settings: dict[str, Any] = {"kind": kind, "n_conversations": 3, "n_turns": 3, "max_context_tokens": limit}
    workload = loaded(outputs, count=lambda text: len(engine.tokenizer.encode(text)), max_tokens=100, **settings)
    for run, asked in zip(play(workload, EngineBackend(engine)), turns(workload), strict=True):
        assert len(run.calls) == len(asked)
        for call in run.calls:
            assert call.meta["prompt_tokens"] + call.meta["completion_tokens"] <= limit
    assert all(turns(workload)), "each conversation has a turn left"


def test_no_room_for_a_first_turn_is_refused() -> None:
    with pytest.raises(DataError, match=r"max_context_tokens=100 has no room for a question of .* give at least 520"):
        loaded(kind="short", count=characters, max_context_tokens=100)
    with pytest.raises(DataError, match="max_context_tokens=64 leaves no room for 2 outputs behind a prompt of 132"):
        loaded(kind="mt_bench", system="word " * 68, max_context_tokens=64)


@pytest.mark.parametrize(
    ("files", "kind", "message"),
    [
        (
            {"mt_bench/mt_bench_question.jsonl": '{"question_id": 1, "turns": ["a"]}\nno\n'},
            "mt_bench",
            "line 2: not JSON",
        ),
        ({"mt_bench/mt_bench_question.jsonl": [{"turns": []}]}, "mt_bench", "line 1: no field 'question_id'"),
        (
            {
                "mt_bench/mt_bench_question.jsonl": ASKED,
                "mt_bench/mt_bench_reference_gpt-4.jsonl": [{"question_id": 82, "choices": []}],
            },
            "mt_bench",
            "gpt-4.jsonl, line 1: its turns have another form",
        ),
        ({"mt_bench/dummy_conversation.json": "[{"}, "conversations", "dummy_conversation.json: not JSON"),
        ({"mt_bench/dummy_conversation.json": '{"a": 1}'}, "conversations", "a JSON list of conversations is needed"),
        (
            {"mt_bench/dummy_conversation.json": '[{"id": "a"}]'},
            "conversations",
            "entry 0: its turns have another form",
        ),
        (
            {"trace_lmcache_agent/miniswe.jsonl": [CALLS[0], {"session_id": "x", "input": "Mend it.\n"}]},
            "agent",
            "miniswe.jsonl, line 2: no field 'output'",
        ),
        ({"mt_bench/other": "x"}, "mt_bench", r"no mt_bench_question\.jsonl or .* in .*mt_bench; it needs"),
        ({"trace_lmcache_agent/other": "x"}, "agent", r"no miniswe\.jsonl or miniswe\.jsonl\.gz in"),
    ],
)
def test_broken_data_is_named_and_no_sample_taken(
    tmp_path: Path, files: Mapping[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        loaded(kind=kind, data_dir=write(tmp_path, files))


@pytest.mark.parametrize("kind", ["mt_bench", "conversations", "agent"])
def test_the_sample_is_announced_and_every_answer_is_recorded(kind: str) -> None:
    workload = loaded(kind=kind, n_conversations=None)
    assert workload.data.origin == "sample"
    assert "made by our own code, not" in workload.data.note
    assert all(turn.answer for one in turns(workload) for turn in one)
    assert len({one[0].said for one in turns(workload)}) == len(turns(workload)) >= 6


def test_warming_up_warms_nothing_that_is_measured() -> None:
    for kind in ("short", "mt_bench", "agent"):
        workload = loaded(kind=kind)
        first = {one[0].said for one in turns(workload)}
        for warm in workload.warmup():
            assert warm.namespace == "warmup"
            assert warm.args["turns"][0].said not in first


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "tall"},
        {"n_conversations": 0},
        {"n_turns": 0},
        {"max_tokens": 0},
        {"max_context_tokens": 5},
        {"think_s": -1},
        {"n_turns": None},
        {"n_conversations": None, "kind": "long"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("chat", settings)


@pytest.mark.parametrize("kind", ["short", "long", "agent"])
def test_a_system_message_without_roles_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=f"kind={kind} has no roles"):
        load_workload("chat", {"kind": kind, "system": "Be brief."})


def test_the_real_files() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with mt_bench/ and trace_lmcache_agent/")
    asked = turns(loaded(kind="mt_bench", data_dir=REAL, n_conversations=None))
    assert [len(one) for one in asked] == [2] * 80
    spoken = turns(loaded(kind="conversations", data_dir=REAL, n_conversations=None, n_turns=None))
    assert [sum(len(one) == n for one in spoken) for n in (1, 2, 3)] == [167, 166, 167]
    sessions = turns(loaded(kind="agent", data_dir=REAL, n_conversations=None, n_turns=None))
    assert len(sessions) == 20
    assert sum(map(len, sessions)) == 402
    assert sessions[0][0].said.startswith("<pr_description>")
    assert all(turn.answer for one in (*spoken, *sessions) for turn in one)
