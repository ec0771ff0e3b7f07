"""The overlapped loop: a step is scheduled and launched while the one before runs, with the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.engine import Engine
from engine.policies.scheduling.fcfs import FCFS
from engine.request import PENDING, FinishReason, Request, SamplingParams

MakeEngine = Callable[..., Engine]


def watched(engine: Engine) -> list[tuple[str, int]]:
    """What the executor is asked for from now on: (call, step)."""
    calls: list[tuple[str, int]] = []
    executor: Any = engine.executor
    launch, sample, collect = executor.launch, executor.sample, executor.collect

    def watch_launch(batch: Any) -> Any:
        calls.append(("launch", batch.step))
        return launch(batch)

    def watch_sample(pending: Any, masks: Any) -> Any:
        calls.append(("sample", pending.step))
        return sample(pending, masks)

    def watch_collect(pending: Any) -> Any:
        calls.append(("collect", pending[0].step))
        return collect(pending)

    executor.launch, executor.sample, executor.collect = watch_launch, watch_sample, watch_collect
    return calls


def test_the_next_step_is_launched_before_the_last_one_is_collected(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    calls = watched(engine)
    engine.add([1, 2, 3], SamplingParams(max_tokens=3))
    engine.run()
    assert calls == [
        ("launch", 0),
        ("sample", 0),
        ("launch", 1),
        ("collect", 0),
        ("sample", 1),
        ("launch", 2),
        ("collect", 1),
        ("sample", 2),
        ("collect", 2),
    ]


def test_the_plain_loop_waits_for_each_step(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=False)
    calls = watched(engine)
    engine.add([1, 2, 3], SamplingParams(max_tokens=2))
    engine.run()
    assert calls == [(call, step) for step in (0, 1) for call in ("launch", "sample", "collect")]


def outputs(engine: Engine) -> list[tuple[list[int], str]]:
    rng = np.random.default_rng(3)
    requests: list[Request] = []
    for i in range(40):
        prompt = rng.integers(0, 3, rng.integers(1, 20)).tolist()
        stop = (int(rng.integers(0, 7)),) if i % 2 else ()
        requests += engine.add(
            prompt, SamplingParams(max_tokens=int(rng.integers(0, 10)), n=1 + i % 2, stop_token_ids=stop)
        )
        if i % 3 == 0:
            engine.step()
            engine.check()
    engine.run()
    engine.check()
    return [(list(request.output), str(request.finish_reason)) for request in requests]


@pytest.mark.parametrize("cache", ["radix", "flat", "none"])
@pytest.mark.parametrize("pool_tokens", [40, 400])
def test_both_loops_give_the_same_tokens(hash_engine: MakeEngine, cache: str, pool_tokens: int) -> None:
    plain, ahead = (
        outputs(hash_engine(overlap=overlap, cache=cache, pool_tokens=pool_tokens)) for overlap in (False, True)
    )
    assert plain == ahead
    assert any(reason == str(FinishReason.STOP) for _, reason in plain)


def test_what_the_cache_keeps_is_the_same(hash_engine: MakeEngine) -> None:
    kept = []
    for overlap in (False, True):
        engine = hash_engine(overlap=overlap, page_size=1)
        engine.add([1, 2, 3, 4], SamplingParams(max_tokens=6))
        engine.run()
        kept.append(engine.memory.cache.cached_tokens)
    assert kept == [9, 9]  # the last token of an output is never computed


def test_a_token_that_is_being_chosen_is_no_output_yet(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    (request,) = engine.add([1, 2, 3], SamplingParams(max_tokens=5))
    engine.step()
    assert request.tokens[3] == PENDING
    assert request.output == []
    engine.step()
    assert len(request.output) == 1
    assert request.output[0] >= 0


def test_an_abort_forgets_the_token_under_way(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    (request,) = engine.add([1, 2, 3], SamplingParams(max_tokens=5))
    (other,) = engine.add([2, 2, 3], SamplingParams(max_tokens=5))
    engine.step()
    engine.step()
    engine.abort(request)
    engine.check()
    assert len(request.output) == 1
    assert request.n_tokens == 4
    engine.run()
    engine.check()
    assert len(request.output) == 1
    assert len(other.output) == 5
    assert not engine.has_work


def test_the_last_abort_leaves_one_step_to_collect(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    (request,) = engine.add([1, 2, 3], SamplingParams(max_tokens=5))
    engine.step()
    engine.abort(request)
    assert engine.has_work
    assert engine.run() == []
    assert not engine.has_work


def test_no_row_is_scheduled_after_the_last_token_that_may_come(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    engine.add([1, 2, 3], SamplingParams(max_tokens=4))
    engine.add([1, 2, 4, 4], SamplingParams(max_tokens=3, forced_output=(5, 6)))
    engine.run()
    rows = [row.request.id for batch in engine.executor.batches for row in batch.rows]  # type: ignore[attr-defined]
    assert rows.count(0) == 4
    assert rows.count(1) == 2


def test_a_stop_token_wastes_one_row_and_no_more(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    executor: Any = engine.executor
    first = executor.next_token(np.array([1, 2, 3]))
    (request,) = engine.add([1, 2, 3], SamplingParams(max_tokens=9, stop_token_ids=(first,)))
    engine.run()
    assert request.output == [first]
    assert [len(batch.rows) for batch in executor.batches] == [1, 1]


def test_a_lost_step_fails_its_requests_and_the_others_begin_anew(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    executor: Any = engine.executor
    (lost,) = engine.add([1, 2, 3], SamplingParams(max_tokens=5))
    engine.step()
    executor.lose_at.add(0)
    (later,) = engine.add([1, 2, 3, 0, 1], SamplingParams(max_tokens=5))
    done = engine.step()
    assert done == [lost]
    assert lost.error is not None
    assert "lost what it had computed" in lost.error
    engine.check()
    assert engine.memory.cache.cached_tokens == 0
    engine.run()
    assert later.error is None
    assert len(later.output) == 5


def test_a_step_that_fails_to_start_leaves_the_one_before_alone(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    executor: Any = engine.executor
    (first,) = engine.add([1, 2, 3], SamplingParams(max_tokens=1))
    engine.step()
    (second,) = engine.add([2, 2], SamplingParams(max_tokens=1))
    executor.fail_at.add(1)
    assert engine.step() == [first, second]
    assert first.error is None
    assert len(first.output) == 1
    assert second.error is not None
    assert not engine.has_work


def test_policies_hear_of_a_token_when_it_is_known(hash_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []
    engine = hash_engine(overlap=True, schedule="fcfs")

    def on_tokens(self: FCFS, request: Request, n: int, view: Any) -> None:
        heard.append((engine._n_steps, request.id))

    monkeypatch.setattr(FCFS, "on_tokens", on_tokens)
    engine.add([1, 2, 3], SamplingParams(max_tokens=3))
    engine.run()
    assert heard == [(1, 0), (2, 0), (3, 0)]  # each one step after it was launched


def test_the_log_says_which_loop_ran_and_which_step_a_result_belongs_to(hash_engine: MakeEngine) -> None:
    engine = hash_engine(overlap=True)
    engine.add([1, 2, 3], SamplingParams(max_tokens=2))
    engine.run()
    assert engine.log.config["engine"]["overlap"] is True
    assert [event.step for event in engine.log.inputs() if event.kind == "result"] == [0, 1]
    assert hash_engine().config.overlap is False  # no GPU here: nothing to overlap with
