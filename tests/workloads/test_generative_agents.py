"""Generative agents: the trace's form, prompts, order of calls, what comes out where nothing is recorded."""

from __future__ import annotations

import gzip
import itertools
import json

import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from tests.workloads.playing import play
from workloads.data import DataError
from workloads.generative_agents import GenerativeAgents
from workloads.generative_agents.functions import FUNCTIONS, likely_output, prompt_of
from workloads.registry import load_workload

TRIPLE = "generate_event_triple"


@pytest.fixture(autouse=True)
def no_data(monkeypatch):
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)


def triple(agent="Ann Lee", action="mending a net"):
    return {TRIPLE: {"persona_name": agent, "action": action}}


def emoji(action="mending a net", **more):
    return {"generate_pronunciatio": {"action": action}, **more}


def write(folder, rows, packed=False):
    content = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    (folder / f"agent_calls.jsonl{'.gz' if packed else ''}").write_bytes(gzip.compress(content) if packed else content)
    return str(folder)


def loaded(outputs="auto", **settings):
    workload = GenerativeAgents(**settings)
    workload.choose_outputs(outputs, random_weights=True)
    workload.load()
    return workload


@pytest.mark.parametrize("packed", [False, True])
def test_the_published_form_gives_a_job_an_agent(tmp_path, packed):
    rows = [triple("Ann Lee"), emoji("rowing"), triple("Bo Ray"), emoji("asleep"), triple("Ann Lee", "rowing")]
    workload = loaded(data_dir=write(tmp_path, rows, packed))
    assert workload.data.origin == "files"
    ann, bo = workload.jobs()
    assert [ann.name, bo.name] == ["generative_agents/Ann Lee", "generative_agents/Bo Ray"]
    assert [call.function for call in ann.args["calls"]] == [TRIPLE, "generate_pronunciatio", TRIPLE]
    assert [call.arguments["action"] for call in bo.args["calls"]] == ["mending a net", "asleep"]
    assert len(loaded(data_dir=str(tmp_path), n_events=3).jobs()[0].args["calls"]) == 2


def test_a_line_may_say_whose_call_it_is_and_what_came_out(tmp_path):
    rows = [emoji(agent="Cy", recorded=" :-)"), {**triple("Ann Lee"), "agent": "Cy"}]
    (job,) = loaded(data_dir=write(tmp_path, rows)).jobs()
    assert [(call.agent, call.recorded) for call in job.args["calls"]] == [("Cy", " :-)"), ("Cy", " mending, a net")]


def test_prompts_and_output_lengths():
    arguments = {"persona_name": "Ann Lee", "persona_iss": "Ann {Lee} rows.", "event": "it rains"}
    assert prompt_of("poignancy_event", arguments) == (
        "This is who Ann Lee is.\nAnn {Lee} rows.\n"
        "From 1 (an everyday matter, such as washing up) to 10 (something that changes a life, such as a wedding): how "
        "much does what has happened move Ann Lee?\n\nWhat has happened: it rains\nAnswer with a number from 1 to 10:"
    )
    assert prompt_of(TRIPLE, {"persona_name": "Ann Lee", "action": "rowing"}).endswith(
        "Written: (Tess Marlow, walk round, pond)\n--\nSomebody: Ann Lee is rowing.\nWritten: (Ann Lee,"
    )
    assert prompt_of("generate_pronunciatio", {"action": "rowing"}) == (
        "Show what somebody does by an emoji, or by two, and no more.\nWhat: rowing\nEmoji:"
    )
    sector = {name: f"<{name}>" for name in FUNCTIONS["action_location_sector"].arguments}
    assert prompt_of("action_location_sector", sector).endswith(
        "goes to: {The Anchor Inn}\n--\n"
        "<persona_name> lives in {<living_sector>}, where there are: <living_sector_areas>.\n"
        "<persona_name> is now in {<current_sector>}, where there are: <current_sector_areas>.\n"
        "<daily_plan>\nPlaces: {<sector_options>}\n- Who can do it where they are stays there.\n"
        "- The answer is one of the places, letter for letter.\n"
        "<persona_name> is <current_action> now. For <next_action> <persona_name> goes to: {"
    )
    room = {name: f"<{name}>" for name in FUNCTIONS["action_location_object"].arguments}
    assert prompt_of("action_location_object", room).endswith(
        "<persona_name> is going to <target_sector>, where there are: {<target_sector_areas>}\n"
        "- Who can do it where they are stays there. Nobody enters another's room without need.\n"
        "<persona_name> is <current_action> now. "
        "For <next_action> <persona_name> goes to this room of <target_sector>: {"
    )
    assert [(function.max_tokens, function.stop) for function in FUNCTIONS.values()] == [
        (2, None),
        (20, ")"),
        (6, None),
        (10, "}"),
        (5, "}"),
    ]


def test_calls_of_an_agent_wait_for_one_another_and_agents_run_side_by_side():
    workload = loaded(n_events=28, n_agents=2)
    prompts = [[prompt_of(call.function, call.arguments) for call in job.args["calls"]] for job in workload.jobs()]
    backend = MockBackend(steps_per_call=3)
    runs = play(workload, backend)
    assert len(backend.log) == 28
    ours, theirs = prompts
    asked = [call.prompt for call in backend.log]
    assert asked[:4] == [ours[0], theirs[0], ours[1], theirs[1]]
    assert [prompt for prompt in asked if prompt in ours] == ours
    assert backend.clock.now() >= 3 * max(len(ours), len(theirs)), "none was sent before the one before it had ended"
    assert [run.state.ret_value for run in runs] == [
        [call.recorded for call in job.args["calls"]] for job in workload.jobs()
    ]


def test_as_in_the_paper_all_calls_run_one_after_another():
    calls = [call for job in loaded(n_events=20, n_agents=2).jobs() for call in job.args["calls"]]
    (job,) = loaded(n_events=20, n_agents=2, paper_compat=True).jobs()
    assert sorted(map(str, job.args["calls"])) == sorted(map(str, calls))
    agents = [call.agent for call in job.args["calls"]]
    assert sum(a != b for a, b in itertools.pairwise(agents)) > 1, "agents take turns, as in the town"


def test_agents_of_the_sample_remember_what_they_have_seen():
    job = loaded(n_events=60, n_agents=3).jobs()[0]
    seen = [call.arguments for call in job.args["calls"] if call.function == "poignancy_event"]
    assert all(
        later["persona_iss"].startswith(earlier["persona_iss"]) for earlier, later in itertools.pairwise(seen[1:])
    )
    assert seen[0]["event"] in seen[-1]["persona_iss"]
    assert {call.function for call in job.args["calls"]} == set(FUNCTIONS)


def test_a_window_of_memories_moves():
    calls = loaded(n_events=60, n_agents=1, n_memories=2).jobs()[0].args["calls"]
    seen = [call.arguments for call in calls if call.function == "poignancy_event"]
    for i, arguments in enumerate(seen):
        remembered = arguments["persona_iss"].partition("remembers:")[2].strip()
        events = [earlier["event"] for earlier in seen[max(0, i - 2) : i]]
        assert [line.split("o'clock: ")[1] for line in remembered.splitlines()] == [f"{event}." for event in events]
    (without, *_) = loaded(n_events=60, n_agents=1, n_memories=0).jobs()
    assert not any("remembers" in str(call.arguments) for call in without.args["calls"])


def test_an_agent_of_the_sample_enters_the_place_that_it_has_chosen():
    calls = loaded(n_events=40, n_agents=1).jobs()[0].args["calls"]
    pairs = [(a, b) for a, b in itertools.pairwise(calls) if a.function == "action_location_sector"]
    assert len(pairs) > 3
    for sector, room in pairs:
        assert room.arguments["target_sector"] == sector.recorded
        assert room.recorded in room.arguments["target_sector_areas"].split(", ")


def test_on_the_engine_recorded_outputs_come_out_and_prompts_are_found():
    workload = loaded(n_events=24, n_agents=2)
    engine = make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=16384))
    done = []
    engine.on_finish.append(done.append)
    runs = play(workload, EngineBackend(engine))
    requests = [request for request in done if request.params.max_tokens]
    assert len(requests) == 24
    assert sum(request.n_cached for request in requests) > sum(request.prompt_tokens for request in requests) / 4
    for run, job in zip(runs, workload.jobs()):
        for said, call in zip(run.state.ret_value, job.args["calls"], strict=True):
            assert said
            assert call.recorded.startswith(said.removesuffix("\ufffd")), "cut at most"


def test_outputs_by_rule_are_never_empty():
    assert likely_output("poignancy_event", {"event": ""}) == " 1"
    assert likely_output(TRIPLE, {"action": "rowing"}) == " rowing, rowing"
    assert likely_output("action_location_object", {"target_sector_areas": "{a, b}", "next_action": "x"}) == "b"
    assert likely_output("action_location_object", {"target_sector_areas": "", "next_action": "x"}) == "here"


def test_calls_without_room_are_left_out_and_counted(tmp_path):
    folder = write(tmp_path, [emoji("rowing", agent="Cy"), emoji("rowing " * 100)])
    workload = loaded(data_dir=folder, max_context_tokens=60)
    assert [len(job.args["calls"]) for job in workload.jobs()] == [1]
    assert workload.data.note == "1 of 2 calls left out for max_context_tokens=60"
    with pytest.raises(DataError, match="max_context_tokens=9 leaves no call; give more"):
        loaded(data_dir=folder, max_context_tokens=9)


def test_without_data_a_sample_is_made_and_announced():
    workload = loaded()
    assert workload.data.origin == "sample"
    assert "not the trace of Generative Agents" in workload.data.note
    assert workload.data.sha256.startswith("4cd3d48e926fdc0e"), "the same on every machine; a change must be meant"
    assert len(workload.jobs()) == 25
    assert sum(len(job.args["calls"]) for job in workload.jobs()) == 1000
    assert loaded(seed=1).data.sha256 != workload.data.sha256


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", r"agent_calls.jsonl, line 2: not JSON"),
        ({"chat": {}}, "line 2: one of the functions poignancy_event, .* is needed as a key, not chat"),
        ({"agent": "Cy"}, "line 2: one of the functions .* not none"),
        ({**triple(), **emoji()}, "line 2: one of the functions"),
        ({TRIPLE: {"persona_name": "Cy"}}, f"line 2: {TRIPLE}: no field 'action'"),
        (emoji(7), "line 2: generate_pronunciatio: field 'action' is int, str is needed"),
        ({TRIPLE: {"persona_name": "Cy", "action": "a", "mood": "b"}}, f"{TRIPLE} has no argument 'mood'; it takes"),
        (emoji(recorded=""), "line 2: field 'recorded' is empty; leave it out"),
    ],
)
def test_a_broken_line_is_named(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        loaded(data_dir=write(tmp_path, [triple(), row]))


def test_missing_and_empty_traces_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no agent_calls\.jsonl or agent_calls\.jsonl\.gz in"):
        loaded(data_dir=str(tmp_path))
    with pytest.raises(DataError, match="no calls in it"):
        loaded(data_dir=write(tmp_path, []))
    with pytest.raises(DataError, match="line 1: nobody knows whose call it is: give it an `agent`"):
        loaded(data_dir=write(tmp_path, [emoji()]))


@pytest.mark.parametrize("settings", [{"n_events": 0}, {"n_agents": 1000}, {"temperature": -1}, {"seed": "x"}])
def test_bad_settings_are_refused(settings):
    with pytest.raises(ValueError, match=f"{next(iter(settings))}=.* is not allowed"):
        load_workload("generative_agents", settings)
