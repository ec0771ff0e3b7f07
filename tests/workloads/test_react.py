"""ReAct: its data in every form, the prompts of both modes, the tools, what fits, the score."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang import Runner
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.react import React
from workloads.react.data import Page, Turn, examples_of, load_live, load_replay
from workloads.react.program import INSTRUCTION, LAST, said
from workloads.react.tools import Action, Desk, Library, normalised, parsed_action
from workloads.react.workload import recorded_turns
from workloads.registry import load_workload

REAL = os.environ.get("RADIXLAB_DATA")
EXAMPLES = "Question: Is 1 odd?\nThought 1: It is.\nAction 1: Finish[yes]\n" * 3
TURNS = [
    {"thought": "I need Oslo.", "action": "Search[Oslo]", "observation": "Oslo lies on a fjord.\n"},
    {"thought": "It lies on a fjord. ", "action": "Finish[a fjord]", "observation": "Episode finished, reward = 1\n"},
]
ROW = {"Question: Where does Oslo lie?": TURNS}
TASK = {
    "question": "On what does the capital of Norway lie?",
    "answer": "a fjord",
    "supporting_facts": {"title": ["Norway", "Oslo", "Oslo"], "sent_id": [0, 0, 1]},
    "context": {
        "title": ["Oslo", "Lima", "Norway"],
        "sentences": [
            ["Oslo is a city.", " It lies on a fjord.", " It is old.", " It is big.", " It is cold.", " It is dear."],
            ["Lima is the capital of Peru."],
            ["Oslo is the capital of Norway."],
        ],
    },
}


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def write(path: Path, content: Any, packed: bool = False) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_name(path.name + ".gz") if packed else path
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def published(folder: Path, chains: str = "sglang_hotpotqa_100.jsonl", packed: bool = False) -> str:
    write(folder / "react" / "prompts_naive.json", {"webthink_simple6": "\n" + EXAMPLES}, packed)
    write(folder / "react" / chains, json.dumps(ROW) + "\n", packed)
    write(folder / "hotpotqa_distractor_100" / "hotpotqa_distractor_100.jsonl", json.dumps(TASK) + "\n", packed)
    return str(folder)


def loaded(outputs: str = "auto", **settings: Any) -> React:
    workload = React(**settings)
    workload.count_tokens = lambda text: len(text.split())
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chains", ["sglang_hotpotqa_100.jsonl", "hotpotqa_100.jsonl"])
def test_a_replay_asks_for_each_turn_and_keeps_it(tmp_path: Path, chains: str, packed: bool) -> None:
    workload = loaded(data_dir=published(tmp_path, chains, packed))
    assert workload.data.origin == "files"
    backend = MockBackend()
    (run,) = play(workload, backend)
    first = f"{INSTRUCTION}{EXAMPLES}Question: Where does Oslo lie?\nThought 1:"
    second = " I need Oslo.\nAction 1: Search[Oslo]\nObservation 1: Oslo lies on a fjord.\nThought 2:"
    assert [call.prompt for call in backend.log] == [first, first + second]
    assert run.state.text() == f"{first}{second} It lies on a fjord.\nAction 2: Finish[a fjord]\n"


def test_as_in_the_paper_what_is_generated_is_thrown_away(tmp_path: Path) -> None:
    workload = loaded(data_dir=published(tmp_path), paper_compat=True)
    assert workload.outputs == "fixed"
    backend = MockBackend()
    (run,) = play(workload, backend)
    prompts = [call.prompt for call in backend.log]
    assert len(prompts) == len(TURNS) + 1
    assert prompts[2].removeprefix(prompts[0]) == (
        " I need Oslo.\nAction 1: Search[Oslo]\nObservation 1: Oslo lies on a fjord.\n"
        "Thought 2: It lies on a fjord.\nAction 2: Finish[a fjord]\n"
        "Observation 2: Episode finished, reward = 1\nThought 3:"
    )
    assert "ok" not in run.state.text().removeprefix(prompts[0]).split(), "the mock's output is in no prompt"
    lengths = [call.meta["completion_tokens"] for call in backend.log]
    turns = [Turn(*(turn[key].strip() for key in ("thought", "action", "observation"))) for turn in TURNS]
    assert lengths == [len(said(i, turn).split(" ")) for i, turn in enumerate((*turns, LAST), 1)]


def test_a_turn_is_sent_only_when_the_one_before_is_there(tmp_path: Path) -> None:
    for settings in ({}, {"paper_compat": True}, {"mode": "live"}):
        workload = loaded(data_dir=published(tmp_path), **settings)
        backend = MockBackend(steps_per_call=3)
        runner = Runner(backend)
        (job,) = workload.jobs()
        runner.start(job.program, job.args, name=job.name, sampling={"outputs": job.outputs})
        sent: list[int] = []
        while runner.active:
            runner.step()
            sent.append(len(backend.log))
        assert sent[:3] == [1, 1, 2], settings
        assert len(sent) == 3 * len(backend.log), settings


def test_recorded_turns_come_out_of_the_engine(tmp_path: Path) -> None:
    workload = loaded(data_dir=published(tmp_path))
    engine = make_engine(EngineConfig(model="tiny", pool_tokens=4096))
    (run,) = play(workload, EngineBackend(engine))
    assert run.state["turn1"] == " I need Oslo.\nAction 1: Search[Oslo]\n"
    assert run.state["turn2"] == " It lies on a fjord.\nAction 2: Finish[a fjord]\n"
    first, second = (run.state.get_meta_info(name) for name in ("turn1", "turn2"))
    computed = first["prompt_tokens"] + first["completion_tokens"] - 1
    assert second["cached_tokens"] >= computed - 1, "what the model said is found in the cache"


@pytest.mark.parametrize("outputs", ["recorded", "fixed"])
def test_a_live_agent_follows_the_composed_way_with_real_tools(tmp_path: Path, outputs: str) -> None:
    workload = loaded(outputs, data_dir=published(tmp_path), mode="live")
    backend = MockBackend()
    (run,) = play(workload, backend)
    assert len(backend.log) == 3
    assert run.state.ret_value == "a fjord"
    assert "\nObservation 1: Oslo is the capital of Norway.\n" in run.state.text()
    assert (
        "\nObservation 2: Oslo is a city. It lies on a fjord. It is old. It is big. It is cold.\n" in run.state.text()
    )
    assert workload.score([run]) == ("exact match", 1.0, 1)
    assert recorded_turns(load_live(str(tmp_path)).tasks[0])[1].action == "Search[Oslo]"


@pytest.mark.parametrize(
    ("written", "observation", "score"),
    [
        (" It's Oslo.\nAction 1: Finish[The Fjord.]\n", "", 1.0),
        (" It's Oslo.\nAction 1: Finish[a lake]\n", "", 0.0),
        (" Hm.\nAction 1: search[oslo]\n", "Observation 1: Oslo is a city.", 0.0),
        (
            " Hm.\nAction 1: Search[capital of Peru]\n",
            "Observation 1: Could not find capital of Peru. Similar: Lima",
            0.0,
        ),
        (" Hm.\nAction 1: Lookup[city]\n", "Observation 1: No page is open: search one first.", 0.0),
        (" I dance.", "Observation 1: Invalid action: say Search[title]", 0.0),
    ],
)
def test_what_a_free_model_writes_is_done(tmp_path: Path, written: str, observation: str, score: float) -> None:
    workload = loaded("free", data_dir=published(tmp_path), mode="live", max_steps=2)
    backend = MockBackend(reply=lambda _: written)
    (run,) = play(workload, backend)
    assert len(backend.log) == (1 if "Finish" in written else 2)
    assert observation in run.state.text()
    assert workload.score([run]) == ("exact match", score, 1)
    assert workload.score([]) is None


def test_a_tool_takes_its_time(tmp_path: Path) -> None:
    def steps(seconds: float) -> int:
        backend = MockBackend()
        play(loaded(data_dir=published(tmp_path), mode="live", tool_seconds=seconds), backend)
        return backend.clock.steps

    assert steps(50.0) - steps(0.0) >= 2 * 49


def test_a_search_opens_a_page_and_lookups_go_through_it() -> None:
    desk = Desk(
        Library([Page("Oslo", ("Oslo is a city.", "It is a port.", "A harbour is a port.")), Page("Bo", ("Bo.",))])
    )
    assert desk.act(Action("search", "OSLO")) == "Oslo is a city. It is a port. A harbour is a port."
    assert desk.act(Action("lookup", "Port")) == "(Result 1 / 2) It is a port."
    assert desk.act(Action("lookup", "city")) == "(Result 1 / 1) Oslo is a city."
    assert desk.act(Action("lookup", "Port")) == "(Result 1 / 2) It is a port."
    assert desk.act(Action("lookup", "Port")) == "(Result 2 / 2) A harbour is a port."
    assert desk.act(Action("lookup", "Port")) == "No more results."
    assert desk.act(Action("search", "harbour")).startswith("Could not find harbour. Similar: Oslo")
    assert desk.act(Action("lookup", "Port")) == "No page is open: search one first."


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (" So.\nAction 1: Search[High Plains (United States)]\n", Action("search", "High Plains (United States)")),
        ("Action 2: Finish[list [of] lists]", Action("finish", "list [of] lists")),
        ("Lookup[ a b ]\nAction 2: Finish[no]", Action("lookup", "a b")),
        ("Search", None),
        ("Dance[now]", None),
    ],
)
def test_the_first_action_counts(text: str, action: Action | None) -> None:
    assert parsed_action(text) == action


def test_answers_are_compared_as_hotpotqa_does() -> None:
    assert normalised("The  U.S. Navy, a fleet") == "us navy fleet"
    assert normalised("Yes") == normalised("yes.")
    assert normalised("1,800 to 7,000 ft") != normalised("1,800 to 700 ft")


def test_what_does_not_fit_is_left_out_examples_first(tmp_path: Path) -> None:
    folder = published(tmp_path)
    whole = loaded(data_dir=folder, max_tokens=20)
    backend = MockBackend()
    play(whole, backend)
    longest = max(len(call.prompt.split()) for call in backend.log) + 20
    one = len(EXAMPLES.split()) // 3

    def prompts(limit: int) -> tuple[React, list[str]]:
        workload, backend = loaded(data_dir=folder, max_tokens=20, max_context_tokens=limit), MockBackend()
        play(workload, backend)
        assert all(len(call.prompt.split()) + 20 <= limit for call in backend.log)
        return workload, [call.prompt for call in backend.log]

    assert prompts(longest)[1] == [call.prompt for call in backend.log]
    fewer, asked = prompts(longest - 1)
    assert asked[0].count("Is 1 odd?") == 2
    assert fewer.data.note == f"to fit into {longest - 1} tokens, 2 of 3 examples are shown"
    short, asked = prompts(longest - 3 * one - 1)
    assert len(asked) == 1
    assert short.data.note.endswith("0 of 3 examples are shown, and 1 of 1 chains end early")
    with pytest.raises(DataError, match="max_context_tokens=25 leaves no room for a first turn; give more"):
        prompts(25)


def test_a_free_agent_ends_before_a_turn_that_might_not_fit(tmp_path: Path) -> None:
    reply = "Action 1: Search[Oslo]\n"
    free = {"data_dir": published(tmp_path), "mode": "live", "max_tokens": 20}
    unlimited, limited = MockBackend(reply=lambda _: reply), MockBackend(reply=lambda _: reply)
    play(loaded("free", **free), unlimited)
    prompts = [call.prompt for call in unlimited.log]
    assert len(prompts) == 7
    (run,) = play(loaded("free", **free, max_context_tokens=len(prompts[4].split()) + 20), limited)
    # how long its outputs get isn't known before: examples make room for the composed way with outputs of 20 tokens
    assert all(len(call.prompt.split()) + 20 <= len(prompts[4].split()) + 20 for call in limited.log)
    assert 3 <= len(limited.log) < 7
    assert run.state.ret_value == ""


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"sglang_hotpotqa_100.jsonl, line 1: not JSON"),
        ({"a": TURNS, "b": TURNS}, "line 1: a question with its thoughts, actions and observations is needed"),
        ({"a": [{"thought": "x", "action": "y"}]}, r"line 1: a question with .*observation"),
        ({"a": []}, "line 1: a chain needs at least one turn"),
        ("", "no chains in it; get the file again"),
    ],
)
def test_a_broken_chain_is_named(tmp_path: Path, row: Any, message: str) -> None:
    folder = published(tmp_path)
    write(tmp_path / "react" / "sglang_hotpotqa_100.jsonl", row)
    with pytest.raises(DataError, match=message):
        loaded(data_dir=folder)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ('{"a":\n{', "prompts_naive.json, line 2: not JSON"),
        ([], "a JSON object of prompts is needed, not list"),
        ({"fever": "x"}, "no field 'webthink_simple6'; its fields: fever"),
        ({"webthink_simple6": ["x"]}, "field 'webthink_simple6' is list, str is needed"),
    ],
)
def test_a_broken_prompt_is_named(tmp_path: Path, prompts: Any, message: str) -> None:
    folder = published(tmp_path)
    write(tmp_path / "react" / "prompts_naive.json", prompts)
    for mode in ("replay", "live"):
        with pytest.raises(DataError, match=message):
            loaded(data_dir=folder, mode=mode)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "line 1: field 'answer' is NoneType"),
        ({"supporting_facts": {"title": "Oslo"}}, "line 1: supporting_facts needs a list of titles"),
        ({"supporting_facts": {"title": []}}, "line 1: supporting_facts needs a list of titles"),
        (
            {"context": {"title": ["a"], "sentences": ["b"]}},
            "line 1: context needs a list of titles and, for each, a list",
        ),
        ({"context": {"title": ["a", "b"], "sentences": [["c"]]}}, "line 1: context has 2 titles for 1 pages"),
    ],
)
def test_a_broken_question_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    folder = published(tmp_path)
    write(tmp_path / "hotpotqa_distractor_100" / "hotpotqa_distractor_100.jsonl", {**TASK, **change})
    with pytest.raises(DataError, match=message):
        loaded(data_dir=folder, mode="live")


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no prompts_naive.json or prompts_naive.json.gz in .*; it needs"):
        loaded(data_dir=str(tmp_path))
    published(tmp_path)
    (tmp_path / "react" / "sglang_hotpotqa_100.jsonl").unlink()
    with pytest.raises(DataError, match=r"no sglang_hotpotqa_100\.jsonl or"):
        loaded(data_dir=str(tmp_path))
    (tmp_path / "react" / "prompts_naive.json").unlink()
    live = loaded(data_dir=str(tmp_path), mode="live")
    assert live.data.note == "the solved examples are our own: prompts_naive.json isn't there"


def test_the_sample_is_announced_and_asks_nothing_that_its_examples_answer() -> None:
    for mode, name in (("replay", "recorded ReAct chains"), ("live", "HotpotQA")):
        workload = loaded(mode=mode)
        assert workload.data.origin == "sample"
        assert f"not {name}" in workload.data.note
        for job in workload.jobs():
            assert job.args["question"] not in job.args["examples"]
    assert len(examples_of(load_replay(None).examples)) == 6


def test_warming_up_warms_nothing_that_is_measured() -> None:
    workload = loaded()
    for warm in workload.warmup():
        assert warm.namespace == "warmup"
        assert not any(warm.args["examples"][:8] in job.args["examples"] for job in workload.jobs())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "dream"}, "mode='dream' is not allowed: it must be one of replay, live"),
        ({"retriever": "google"}, "retriever='google' is not allowed"),
        ({"max_steps": 0}, "max_steps=0 is not allowed"),
        ({"max_context_tokens": "all"}, "max_context_tokens='all' is not allowed"),
        ({"mode": "live", "tool_seconds": -1}, "tool_seconds=-1 is not allowed"),
        ({"mode": "live", "tool_seconds": True}, "tool_seconds=True is not allowed"),
        ({"tool_seconds": 1}, "tool_seconds is for mode=live"),
        ({"mode": "live", "paper_compat": True}, "paper_compat=true replays chains"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_workload("react", settings)


def test_recorded_outputs_are_refused_where_they_are_thrown_away() -> None:
    with pytest.raises(
        ValueError, match="outputs='recorded' isn't served by this workload; allowed: auto, fixed, free"
    ):
        loaded("recorded", paper_compat=True)


def test_the_real_files() -> None:
    if not REAL:
        pytest.skip("RADIXLAB_DATA isn't set: it names a folder with react/ and hotpotqa_distractor_100/")
    replay = load_replay(REAL)
    assert len(replay.chains) == 100
    assert sum(len(chain.turns) for chain in replay.chains) == 401
    assert len(examples_of(replay.examples)) == 6
    live = load_live(REAL)
    assert (len(live.tasks), len(live.pages)) == (100, 1000)
    assert all(len(recorded_turns(task)) == 3 for task in live.tasks)
    titles = {page.title for page in live.pages}
    assert all(title in titles for task in live.tasks for title in task.gold)
