"""Programs on an engine whose time is virtual: the same decisions each time, exact latencies, no wall time."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import pytest

import lang as sgl
from engine.engine import Engine
from engine.replay import first_difference, replay
from experiments.load import Closed, Open, play
from lang.backends.engine import EngineBackend
from lang.program_run import ProgramRun
from tests.lang.virtual_engine import POLICIES, STEP_S, TOKEN_S, virtual_backend
from workloads.base import Job


@sgl.function
def one_call(s, text):
    s += text + sgl.gen("x", max_tokens=4, ignore_eos=True)


@sgl.function
def branching(s, text):
    s += text + sgl.gen("plan", max_tokens=3)
    forks = s.fork(3)
    forks += lambda i: f" Part {i}: " + sgl.gen("part", max_tokens=3)
    forks.join()
    s += "".join(s["part"]) + sgl.select("judgement", ["good", "bad"])


def jobs(program: Any, n: int) -> list[Job]:
    texts = [f"Story {i} of the little bear. " * (1 + i % 3) for i in range(n)]
    return [Job(program=program, args={"text": text}, name=f"job {i}") for i, text in enumerate(texts)]


def played(load: Any, n: int = 8, **config: Any) -> tuple[EngineBackend, list[ProgramRun]]:
    backend = virtual_backend(**config)
    runs = play(jobs(branching, n), load, sgl.Runner(backend), backend.engine.clock).runs
    assert [run.error for run in runs] == [None] * n
    return backend, list(runs)


DEFERRING = {"admission": f"{POLICIES}:InHalfSeconds", "pool_tokens": 256, "max_running": 4}


@pytest.mark.parametrize("config", [{}, DEFERRING, {"overlap": True, **DEFERRING}])
def test_the_same_decisions_and_times_each_time_and_in_a_replay(config: dict[str, Any]) -> None:
    def run_once() -> tuple[Any, ...]:
        backend, runs = played(Open(tuple(0.07 * i for i in range(8))), **config)
        engine = backend.engine
        assert first_difference(engine.log, replay(engine.log)) is None
        times = [(run.name, run.due, run.started_at, run.finished_at) for run in runs]
        return engine.log.decisions(), [event.time for event in engine.log.events], times

    first = run_once()
    assert any(kind == "defer" for _, kind, *_ in first[0]) == ("admission" in config)
    assert run_once() == first


@sgl.function
async def branching_async(s, text):
    s += text + sgl.gen("plan", max_tokens=3)
    forks = s.fork(3)
    forks += lambda i: f" Part {i}: " + sgl.gen("part", max_tokens=3)
    forks.join()
    s += "".join(await s.get("part")) + sgl.select("judgement", ["good", "bad"])


def test_async_programs_decide_the_same_under_a_load_and_on_a_loop_each_time() -> None:
    def under_load(program: sgl.Program) -> list[tuple[Any, ...]]:
        backend = virtual_backend(**DEFERRING)
        play(jobs(program, 6), Closed(3), sgl.Runner(backend), backend.engine.clock)
        return backend.engine.log.decisions()

    async def on_a_loop() -> list[tuple[Any, ...]]:
        backend = virtual_backend(**DEFERRING)
        await branching_async.run_batch_async([dict(job.args) for job in jobs(branching_async, 6)], backend=backend)
        assert first_difference(backend.engine.log, replay(backend.engine.log)) is None
        return backend.engine.log.decisions()

    assert under_load(branching_async) == under_load(branching), "as other programs do"
    assert asyncio.run(on_a_loop()) == asyncio.run(on_a_loop())


def test_wall_time_is_of_no_interest(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("somebody sleeps")

    expected, _ = played(Closed(3), **DEFERRING)
    with monkeypatch.context() as patched:
        rng = random.Random(1)
        for name in ("perf_counter", "time", "monotonic"):
            patched.setattr(time, name, lambda: rng.uniform(-1e6, 1e6))
        patched.setattr(time, "sleep", never)
        backend, _ = played(Closed(3), **DEFERRING)
    assert backend.engine.log.decisions() == expected.engine.log.decisions()
    assert [event.time for event in backend.engine.log.events] == [event.time for event in expected.engine.log.events]


def test_latencies_are_what_the_cost_model_says() -> None:
    backend = virtual_backend()
    job, *_ = jobs(one_call, 1)
    (run,) = play([job], Open((1.5,)), sgl.Runner(backend), backend.engine.clock).runs
    (request,) = run.calls[0].requests
    first = STEP_S + TOKEN_S * request.prompt_tokens
    assert (run.due, run.started_at, request.arrival) == (1.5, 1.5, 1.5)
    assert request.token_times[0] - request.arrival == pytest.approx(first, abs=1e-12)
    assert run.finished_at == pytest.approx(1.5 + first + 3 * (STEP_S + TOKEN_S), abs=1e-12)


def test_a_program_that_starts_late_is_charged_from_when_it_was_due() -> None:
    backend = virtual_backend()
    runner = sgl.Runner(backend)
    backend.engine.clock.sleep_until(3.0)
    run = runner.start(one_call, {"text": "late"}, due=2.0)
    while runner.active:
        runner.step()
    (request,) = run.calls[0].requests
    assert (run.due, run.started_at, request.arrival, request.added_at) == (2.0, 3.0, 2.0, 3.0)


def test_while_all_calls_are_deferred_a_step_leaps_to_when_one_is_due() -> None:
    backend = virtual_backend(admission=f"{POLICIES}:InHalfSeconds")
    runner = sgl.Runner(backend)
    backend.engine.clock.sleep_until(0.1)
    run = runner.start(one_call, {"text": "deferred"})
    assert backend.engine.idle_until == 0.5
    steps = 0
    while runner.active:
        runner.step()
        steps += 1
    assert steps == 4, "one for each token, none in vain"
    (request,) = run.calls[0].requests
    assert (request.added_at, request.admitted_at) == (0.1, 0.5)


def test_calls_refused_after_they_were_deferred_fail_their_programs(tmp_path: Any) -> None:
    policy = tmp_path / "fickle.py"
    policy.write_text(
        "from engine.policies.base import *\n\n\nclass Fickle(AdmissionPolicy):\n    def admit(self, request, view):\n"
        "        return Reject('too busy') if view.now >= 1 else RetryAt(view.now + 0.5)\n"
    )
    backend = virtual_backend(admission=f"{policy}:Fickle")
    states = one_call.run_batch([("a",), ("b",)], backend=backend)
    assert ["'x' failed: too busy" in str(state.error()) for state in states] == [True, True]
    assert backend.engine.clock.now() == 1.0
    assert not backend.engine.has_work


def test_a_step_with_nothing_under_way_ends() -> None:
    backend = virtual_backend()
    runner = sgl.Runner(backend)
    assert backend.step() == []
    assert runner.step() == []
    run = runner.start(one_call, {"text": "a"}, due=9.0)  # an engine starts it at once: its due is when it counts from
    runner.cancel(run)
    assert runner.step() == [run]
    assert (backend.step(), backend.engine.clock.now()) == ([], 0.0)


def test_only_real_time_has_to_be_waited_for(tmp_path: Any) -> None:
    policy = tmp_path / "later.py"
    policy.write_text(
        "from engine.policies.base import *\n\n\nclass Later(AdmissionPolicy):\n    def admit(self, request, view):\n"
        "        return RetryAt(view.now + 1000)\n"
    )
    virtual = virtual_backend(admission=f"{policy}:Later")
    real = EngineBackend(Engine(virtual.engine.executor, virtual.engine.tokenizer, virtual.engine.config))
    for backend in (virtual, real):
        assert backend.rest() == 0, "nothing is deferred"
        backend.engine.add("a")
        assert backend.engine.idle_until is not None
    assert virtual.rest() == 0, "a step leaps over it"
    assert 0 < real.rest() <= 1000
