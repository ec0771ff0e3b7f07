"""Random arrivals, aborts, evictions, preemptions and failures in a pool that is far too small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.replay import first_difference, replay
from engine.request import FinishReason, RequestError, SamplingParams

EVICTION = ["lru", "fifo", "lfu", "slru", "random"]
SCHEDULING = ["fcfs", "cache_aware", "dfs_weight", "lof", "random", "priority"]

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=24)
actions = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            tokens,
            st.integers(0, 12),
            st.integers(1, 3),
            st.integers(-1, 6),
            st.integers(0, 2),
            st.sampled_from([(), (), (0, 4)]),
        ),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("fail")),
        st.tuples(st.just("lose")),
        st.tuples(st.just("flush")),
    ),
    min_size=1,
    max_size=40,
)
configs = st.fixed_dictionaries(
    {
        "pool_tokens": st.sampled_from([24, 40, 96]),
        "page_size": st.sampled_from([1, 2, 4]),
        "cache": st.sampled_from(["radix", "radix", "flat", "none"]),
        "max_batch_tokens": st.sampled_from([3, 8, 64]),
        "max_running": st.sampled_from([1, 3]),
        "eviction": st.sampled_from(EVICTION),
        "schedule": st.sampled_from(SCHEDULING),
        "seed": st.integers(0, 3),
        "overlap": st.booleans(),
    }
)


def drive(engine: Engine, script: list[Any]) -> list[Any]:
    """Runs the script, checking every invariant after each step. Returns all requests."""
    executor: Any = engine.executor
    requests: list[Any] = []

    def step() -> None:
        engine.step()
        engine.check()

    for action in script:
        match action:
            case ("add", prompt, max_tokens, n, scored_from, namespace, stop):
                scores = 1 <= scored_from < len(prompt)
                params = SamplingParams(
                    max_tokens=max_tokens,
                    n=n,
                    stop_token_ids=stop,
                    prompt_logprobs=0 if scores else None,
                    prompt_logprobs_start=scored_from if scores else 1,
                )
                try:
                    requests += engine.add(prompt, params, namespace=str(namespace), priority=len(prompt) % 3)
                except RequestError:
                    assert len(prompt) + max_tokens > engine.capacity_tokens
            case ("step", n):
                for _ in range(n):
                    if engine.has_work:
                        step()
            case ("abort", i):
                if requests:
                    engine.abort(requests[i % len(requests)])
                    engine.check()
            case ("fail",):
                executor.fail_at.add(engine._n_steps)
            case ("lose",):
                executor.lose_at.add(engine._n_steps)
            case ("flush",):
                engine.flush_cache()
                engine.check()
    for _ in range(2000):
        if not engine.has_work:
            return requests
        step()
    raise AssertionError("requests are left after 2000 steps")


@given(config=configs, script=actions)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_traffic_in_a_small_pool_is_served_right(
    hash_engine: Callable[..., Engine], config: dict[str, Any], script: list[Any]
) -> None:
    engine = hash_engine(**config)
    executor: Any = engine.executor
    requests = drive(engine, script)
    for request in requests:
        assert request.finished
        if request.finish_reason is FinishReason.ERROR:
            assert "hiccuped" in request.error
            continue
        expected = request.key.tolist()
        for _ in range(request.output_tokens):
            expected.append(executor.next_token(np.array(expected)))
        assert request.tokens[: request.n_tokens].tolist() == expected
        stops = request.params.stop_token_ids
        assert not set(request.output[:-1]) & set(stops)
        if request.finish_reason is FinishReason.STOP:
            assert request.output[-1] in stops
        if request.finish_reason is FinishReason.LENGTH:
            assert request.output_tokens == request.max_tokens
            params = request.params
            if params.prompt_logprobs is not None:
                scored = [(lp.token, -lp.logprob) for lp in request.prompt_logprobs]
                at = range(params.prompt_logprobs_start, request.prompt_tokens)
                assert scored == [(request.key[i], float(i)) for i in at]
        assert 0 <= request.n_cached < request.prompt_tokens
    memory = engine.memory
    assert memory.pool.n_free * config["page_size"] + memory.cache.cached_tokens == (
        memory.pool.n_pages * config["page_size"]
    )
    assert memory.cache.evictable_tokens == memory.cache.cached_tokens


@given(config=configs, script=actions)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_decision_of_a_logged_run_is_found_again(
    hash_engine: Callable[..., Engine], config: dict[str, Any], script: list[Any], tmp_path_factory: Any
) -> None:
    engine = hash_engine(**config)
    drive(engine, script)
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    engine.log.write(path)
    recorded = type(engine.log).read(path)
    assert recorded.decisions() == engine.log.decisions()
    assert first_difference(recorded, replay(recorded)) is None


@pytest.mark.parametrize("schedule", SCHEDULING)
@pytest.mark.parametrize("eviction", EVICTION)
def test_the_same_seed_gives_the_same_decisions(
    hash_engine: Callable[..., Engine], schedule: str, eviction: str
) -> None:
    def decisions() -> list[Any]:
        engine = hash_engine(pool_tokens=40, schedule=schedule, eviction=eviction, seed=5)
        rng = np.random.default_rng(0)
        for _ in range(30):
            prompt = rng.integers(0, 2, rng.integers(2, 20)).tolist()
            engine.add(prompt, SamplingParams(max_tokens=int(rng.integers(1, 8))))
        engine.run()
        return engine.log.decisions()

    first = decisions()
    assert first == decisions()
    assert any(kind == "evict" for _, kind, *_ in first)
