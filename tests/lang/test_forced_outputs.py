"""Runs whose outputs are recorded ones, or as long as recorded ones; and programs that sleep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lang as sgl
from engine.clock import VirtualClock
from engine.config import EngineConfig
from engine.make import make_engine
from engine.request import RequestError
from experiments.load import Closed, Open, play
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.backends.recorded_outputs import forced
from lang.graph.tracer import trace
from lang.sampling import Sampling
from workloads.base import Job

SAID = " a red boat, then a blue one. Observation"


@pytest.fixture(scope="module")
def engine():
    return make_engine(EngineConfig(model="tiny", pool_tokens=2048))


@pytest.fixture
def backend(engine) -> Iterator[EngineBackend]:
    engine.flush_cache()
    yield EngineBackend(engine)
    assert not engine.has_work


@sgl.function
def two_calls(s, start, recorded=SAID):
    s += start + sgl.gen("first", max_tokens=60, stop="Observation", recorded=recorded)
    s += "\nAnd then" + sgl.gen("second", max_tokens=9, recorded=" it rained")
    s += sgl.select("mood", [" good", " bad"], recorded=" bad")


def test_recorded_outputs_come_out_decoded_one_by_one(engine, backend) -> None:
    state = two_calls.run("He saw", backend=backend, outputs="recorded")
    assert (state["first"], state["second"], state["mood"]) == (SAID, " it rained", " bad")
    assert state.text() == "He saw" + SAID + "\nAnd then it rained bad"
    meta = state.get_meta_info("first")
    assert meta["completion_tokens"] == len(engine.tokenizer.encode("He saw" + SAID)) - meta["prompt_tokens"]
    assert meta["finish_reason"] == "stop"


def test_what_follows_a_recorded_output_finds_it_in_the_cache(engine, backend) -> None:
    state = two_calls.run("He saw", backend=backend, outputs="recorded")
    first, second = state.get_meta_info("first"), state.get_meta_info("second")
    assert second["cached_tokens"] >= first["prompt_tokens"] + first["completion_tokens"] - 1


def test_fixed_outputs_are_as_long_as_the_recorded_ones_and_selects_take_the_recorded_choice(backend) -> None:
    recorded = two_calls.run("He saw", backend=backend, outputs="recorded")
    fixed = two_calls.run("He saw", backend=backend, outputs="fixed", temperature=0)
    for name in ("first", "second"):
        assert fixed.get_meta_info(name)["completion_tokens"] == recorded.get_meta_info(name)["completion_tokens"]
    assert fixed["first"] != SAID
    assert fixed["mood"] == " bad"


def test_free_outputs_heed_no_recording(backend) -> None:
    free = two_calls.run("He saw", backend=backend, temperature=0)
    assert (free["first"], free["second"]) != (SAID, " it rained")
    scores = free.get_meta_info("mood")["normalized_prompt_logprobs"]
    assert free["mood"] == [" good", " bad"][scores.index(max(scores))]


def test_a_fixed_output_without_a_recording_has_max_tokens(backend) -> None:
    @sgl.function
    def one(s):
        s += "He saw" + sgl.gen("x", max_tokens=7, stop="e")

    assert one.run(backend=backend, outputs="fixed").get_meta_info("x")["completion_tokens"] == 7


def test_a_fixed_output_keeps_its_grammar(backend) -> None:
    @sgl.function
    def number(s):
        s += "He saw" + sgl.gen("x", max_tokens=7, regex="[0-9]{3}", recorded="12")

    assert number.run(backend=backend, outputs="fixed")["x"].isdigit()
    assert number.run(backend=backend, outputs="recorded")["x"] == "12"


def test_each_sample_has_its_own_recording(backend) -> None:
    @sgl.function
    def votes(s):
        s += "It is" + sgl.gen("x", max_tokens=20, n=3, recorded=[" sure", " likely", " impossible"])

    for one in (backend, MockBackend()):
        state = votes.run(backend=one, outputs="recorded")
        assert state["x"] == [" sure", " likely", " impossible"]


def test_a_recorded_output_ends_at_max_tokens(backend) -> None:
    @sgl.function
    def short(s):
        s += "He saw" + sgl.gen("x", max_tokens=3, recorded=SAID)

    state = short.run(backend=backend, outputs="recorded")
    assert SAID.startswith(state["x"])
    assert state.get_meta_info("x")["completion_tokens"] == 3
    assert state.get_meta_info("x")["finish_reason"] == "length"


def test_recordings_that_cannot_be_used_fail_their_call(backend) -> None:
    @sgl.function
    def bad(s, sampling):
        s += "He saw" + sgl.gen("x", **sampling)

    for sampling, why in (
        ({}, "has no recorded output"),
        ({"recorded": ""}, "is empty"),
        ({"recorded": ["a", "b"], "n": 3}, "2 texts for n=3"),
    ):
        for one in (backend, MockBackend()):
            with pytest.raises(ValueError, match=why):
                bad.run(sampling, backend=one, outputs="recorded")


def test_an_unknown_kind_of_outputs_is_refused() -> None:
    with pytest.raises(TypeError, match="free, recorded, fixed"):
        sgl.gen("x", outputs="same")
    with pytest.raises(ValueError, match="one of the choices"):
        sgl.select("x", ["a", "b"], recorded="c")
    assert issubclass(RequestError, ValueError)
    assert forced(Sampling(recorded=("a",)), list) is None


def test_the_mock_says_what_is_recorded_too() -> None:
    state = two_calls.run("He saw", backend=MockBackend(reply=lambda _: "so it goes"), outputs="recorded")
    assert (state["first"], state["mood"]) == (SAID, " bad")
    fixed = two_calls.run("He saw", backend=MockBackend(reply=lambda _: "so it goes"), outputs="fixed")
    assert len(fixed["first"].split(" ")) == len(SAID.split(" "))


@sgl.function
def naps(s, seconds, log):
    for i, nap in enumerate(seconds):
        s += f"turn {i}:" + sgl.gen(f"x{i}", max_tokens=1)
        s.sync()
        log.append((s._run.name, s._runner.backend.clock.now()))
        s.sleep(nap)


def test_a_sleeping_program_goes_on_when_its_time_has_come_and_others_go_on_meanwhile() -> None:
    backend, log = MockBackend(), []
    naps.run_batch([{"seconds": [10, 0], "log": log}, {"seconds": [2, 2, 2], "log": log}], backend=backend)
    assert log == [("naps-0", 1), ("naps-1", 1), ("naps-1", 4), ("naps-1", 7), ("naps-0", 12)]


def test_sleep_refuses_what_is_no_time() -> None:
    @sgl.function
    def wrong(s):
        s.sleep(-1)

    @sgl.function
    async def later(s):
        s.sleep(1)

    with pytest.raises(ValueError, match="0 or more"):
        wrong.run(backend=MockBackend())
    with pytest.raises(TypeError, match="async"):
        later.run(backend=MockBackend())
    with pytest.raises(Exception, match="no place in a graph"):
        trace(wrong, {})


class VirtualMock(MockBackend):
    """A step takes a second."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = VirtualClock()  # type: ignore[assignment]

    def step(self):
        self.clock.advance(1.0)
        self.clock.steps = 0
        return super().step()


@pytest.mark.parametrize("load", [Open((0.0, 3.5)), Closed(1)])
def test_an_open_loop_starts_programs_on_time_while_others_sleep(load) -> None:
    backend, log = VirtualMock(), []
    jobs = [Job(program=naps, args={"seconds": [10], "log": log}, name=name) for name in ("a", "b")]
    played = play(jobs, load, sgl.Runner(backend), backend.clock)
    starts = [run.started_at for run in played.runs]
    assert starts == ([0.0, 3.5] if isinstance(load, Open) else [0.0, 11.0])
    assert played.finished_at == (14.5 if isinstance(load, Open) else 22.0)
