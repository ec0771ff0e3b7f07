"""The engine's thread: what it reports is what the engine gave, and nothing but the engine can hold it up."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from engine.clock import VirtualClock
from engine.config import EngineConfig
from engine.constraints import regex
from engine.engine import Engine
from engine.executor.base import ExecutorDead
from engine.make import make_engine
from engine.policies.base import AdmissionPolicy, RetryAt
from engine.request import Fault, FinishReason, RequestError, SamplingParams
from engine.server.engine_thread import End, EngineDead, EngineThread, Report

CONFIG = EngineConfig(model="tiny", device="cpu", pool_tokens=2048)
GREEDY = SamplingParams(max_tokens=12, temperature=0)
PROMPT = np.arange(10, 30)


class Watched:
    """An engine on its thread, and all that it reports. Samples are names."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.reports: list[Report[str]] = []
        self.ends: queue.SimpleQueue[tuple[str, End]] = queue.SimpleQueue()
        self.deaths: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self.n_steps = 0
        self.before_step: Callable[[], None] = lambda: None
        step = engine.step

        def counted() -> Any:
            self.n_steps += 1
            self.before_step()
            return step()

        engine.step = counted  # type: ignore[method-assign]
        self.thread: EngineThread[str] = EngineThread(engine, deliver=self._deliver, died=self.deaths.put)
        self.thread.start()

    def _deliver(self, report: Report[str]) -> None:
        self.reports.append(report)
        for news in report.news:
            if news.end is not None:
                self.ends.put((news.sample, news.end))

    def add(self, *names: str, params: SamplingParams = GREEDY, deadline: float | None = None) -> Future[None]:
        return self.thread.add(names, PROMPT, params, due=self.engine.clock.now(), deadline=deadline)

    def end_of(self, name: str) -> End:
        found, end = self.ends.get(timeout=20)
        assert found == name
        return end

    def tokens(self, name: str) -> list[int]:
        return [
            token for report in self.reports for news in report.news if news.sample == name for token in news.tokens
        ]


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched(make_engine(CONFIG, clock=VirtualClock()))
    yield watched
    watched.thread.stop()
    watched.thread.join(20)
    assert not watched.thread.alive


def test_the_reports_of_a_request_join_to_the_engines_own_answer(watched: Watched) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=3, logprobs=1)
    ((expected,),) = make_engine(CONFIG).generate([PROMPT], params)
    watched.add("a", params=params).result(20)
    end = watched.end_of("a")
    assert watched.tokens("a") == expected.output
    assert (end.reason, end.output_tokens, end.prompt_tokens) == (FinishReason.LENGTH, 12, 20)
    news = [one for report in watched.reports for one in report.news]
    assert [logprob.token for one in news for logprob in one.logprobs] == expected.output


def test_a_step_of_many_requests_is_one_report(watched: Watched) -> None:
    names = [f"s{i}" for i in range(8)]
    watched.add(*names, params=SamplingParams(max_tokens=6, n=8, seed=1)).result(20)
    for _ in names:
        watched.ends.get(timeout=20)
    assert len(watched.reports) <= watched.n_steps
    assert max(len(report.news) for report in watched.reports) == 8


def test_nothing_runs_while_there_is_nothing_to_do(watched: Watched) -> None:
    watched.add("a").result(20)
    watched.end_of("a")
    before = watched.n_steps
    for _ in range(20):
        watched.thread.call(lambda: None).result(20)
    assert watched.n_steps == before


def test_a_call_runs_on_the_engines_thread_and_raises_here(watched: Watched) -> None:
    assert watched.thread.call(lambda: threading.current_thread().name).result(20) == "engine"
    with pytest.raises(ZeroDivisionError):
        watched.thread.call(lambda: 1 // 0).result(20)
    assert watched.thread.alive


def test_a_request_that_is_refused_leaves_no_trace(watched: Watched) -> None:
    with pytest.raises(RequestError, match="context"):
        watched.add("a", params=SamplingParams(max_tokens=10**6)).result(20)
    watched.add("b").result(20)
    watched.end_of("b")
    assert all(news.sample == "b" for report in watched.reports for news in report.news)


def test_an_aborted_request_gives_its_pages_back_before_the_next_step(watched: Watched) -> None:
    held: list[int] = []

    def abort_at_the_third() -> None:
        running = watched.engine.scheduler.running
        held.append(sum(request.n_pages - request.n_shared_pages for request in running.values()))
        if watched.n_steps == 3:
            watched.thread.abort("a")

    watched.before_step = abort_at_the_third
    watched.add("a", params=SamplingParams(max_tokens=500)).result(20)
    end = watched.end_of("a")
    assert end.reason is FinishReason.ABORT
    assert held[2] > 0
    assert watched.n_steps == 3
    watched.thread.call(watched.engine.check).result(20)
    assert watched.engine.memory.pool.n_free + watched.engine.memory.cache.cached_tokens == 2048


def test_a_request_whose_time_is_up_is_dropped_before_its_prompt_is_computed(watched: Watched) -> None:
    watched.add("late", deadline=0.0).result(20)
    end = watched.end_of("late")
    assert (end.reason, end.late, end.admitted_at) == (FinishReason.ABORT, True, None)
    assert watched.n_steps == 0


def test_a_request_that_runs_past_its_deadline_is_ended(watched: Watched) -> None:
    clock = watched.engine.clock
    assert isinstance(clock, VirtualClock)
    watched.before_step = lambda: clock.advance(1.0)
    watched.add("slow", params=SamplingParams(max_tokens=500, seed=1, ignore_eos=True), deadline=5.0).result(20)
    end = watched.end_of("slow")
    assert (end.reason, end.late) == (FinishReason.ABORT, True)
    assert end.output_tokens == 5


def test_a_step_that_fails_fails_its_requests_alone(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = watched.engine.executor
    with monkeypatch.context() as patch:
        patch.setattr(executor, "launch", _raise(RuntimeError("a cable came loose")))
        watched.add("a").result(20)
        end = watched.end_of("a")
    assert (end.reason, end.fault) == (FinishReason.ERROR, Fault.ENGINE)
    watched.add("b").result(20)
    assert watched.end_of("b").reason is FinishReason.LENGTH
    watched.thread.call(watched.engine.check).result(20)


def test_a_dead_executor_ends_the_thread(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched.engine.executor, "launch", _raise(ExecutorDead("the device is gone")))
    watched.add("a").result(20)
    assert isinstance(watched.deaths.get(timeout=20), ExecutorDead)
    assert not watched.thread.alive
    with pytest.raises(EngineDead):
        watched.add("b").result(20)
    with pytest.raises(EngineDead):
        watched.thread.call(lambda: None).result(20)


def test_a_broken_policy_ends_the_thread(watched: Watched) -> None:
    class Broken(AdmissionPolicy):
        def admit(self, request: Any, view: Any) -> Any:
            return "perhaps"

    watched.engine.admission.policy = Broken()
    with pytest.raises(EngineDead):
        watched.add("a").result(20)
    assert "perhaps" in str(watched.deaths.get(timeout=20))


def test_a_request_that_is_put_off_holds_up_nobody(watched: Watched) -> None:
    class Tomorrow(AdmissionPolicy):
        def admit(self, request: Any, view: Any) -> Any:
            return RetryAt(view.now + 86_400)

    watched.engine.admission.policy = Tomorrow()
    watched.add("patient").result(20)
    assert watched.thread.call(lambda: 7).result(20) == 7
    watched.engine.admission.policy = AdmissionPolicy()
    watched.add("b").result(20)
    assert watched.end_of("b").reason is FinishReason.LENGTH
    watched.thread.abort("patient")
    assert watched.end_of("patient").reason is FinishReason.ABORT


def test_stopping_ends_what_is_under_way(watched: Watched) -> None:
    watched.before_step = lambda: watched.thread.stop() if watched.n_steps == 2 else None
    watched.add("a", params=SamplingParams(max_tokens=500)).result(20)
    assert watched.end_of("a").reason is FinishReason.ABORT
    watched.thread.join(20)
    assert watched.thread.error is None
    assert watched.deaths.empty()


def test_what_is_added_while_it_stops_is_ended_or_refused(watched: Watched) -> None:
    def stop_and_add() -> None:
        if watched.n_steps == 1:
            watched.thread.stop()
            added.append(watched.add("b"))

    added: list[Future[None]] = []
    watched.before_step = stop_and_add
    watched.add("a", params=SamplingParams(max_tokens=500)).result(20)
    watched.thread.join(20)
    added[0].result(20)
    assert {watched.ends.get(timeout=20)[0] for _ in range(2)} == {"a", "b"}


def test_a_prompts_log_probabilities_come_whole_though_forced_tokens_follow_it() -> None:
    config = dataclasses.replace(CONFIG, max_batch_tokens=8, max_running=4)
    watched = Watched(make_engine(config))
    params = SamplingParams(max_tokens=20, temperature=0, prompt_logprobs=0, grammar=regex("Dear (Ada|Bob), hello"))
    watched.add("a", params=params).result(20)
    watched.end_of("a")
    first = next(one for report in watched.reports for one in report.news)
    assert len(first.prompt_logprobs) == len(PROMPT) - 1
    watched.thread.stop()
    watched.thread.join(20)


def _raise(error: BaseException) -> Callable[..., Any]:
    def raising(*args: Any) -> Any:
        raise error

    return raising
