"""Joined prompts among ordinary ones: evictions, preemptions, aborts and failures in a pool that is far too small."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.engine import Engine
from engine.replay import first_difference, replay
from engine.request import FinishReason, Request, SamplingParams, TooLong
from engine.splices import JoinedPrompt
from tests.engine.joined_hash import Written, assert_the_cache_is_true, make

texts = st.lists(st.integers(0, 2), max_size=6)
plans = st.recursive(
    texts,
    lambda inner: st.lists(
        st.one_of(texts, st.tuples(st.just("join"), st.lists(inner, min_size=1, max_size=3))), max_size=4
    ),
    max_leaves=8,
)
"""A text, or a list of texts and joins of branches, which are such plans."""
actions = st.lists(
    st.one_of(
        st.tuples(st.just("joined"), texts, plans, texts, st.integers(0, 6), st.booleans(), st.integers(1, 2)),
        st.tuples(st.just("joined"), texts, plans, texts, st.integers(0, 6), st.booleans(), st.integers(1, 2)),
        st.tuples(st.just("add"), st.lists(st.integers(0, 2), min_size=1, max_size=20), st.integers(0, 8)),
        st.tuples(st.just("step"), st.integers(1, 4)),
        st.tuples(st.just("abort"), st.integers(0, 50)),
        st.tuples(st.just("fail")),
        st.tuples(st.just("lose")),
        st.tuples(st.just("flush")),
    ),
    min_size=1,
    max_size=16,
)
configs = st.fixed_dictionaries(
    {
        "pool_tokens": st.sampled_from([32, 48, 160]),
        "page_size": st.sampled_from([1, 2, 4]),
        "cache": st.sampled_from(["radix", "radix", "flat", "none"]),
        "max_batch_tokens": st.sampled_from([3, 8, 64]),
        "max_running": st.sampled_from([1, 3]),
        "eviction": st.sampled_from(["lru", "slru", "random"]),
        "schedule": st.sampled_from(["fcfs", "cache_aware", "dfs_weight", "lof"]),
        "seed": st.integers(0, 3),
        "overlap": st.booleans(),
    }
)


def write(to: Any, plan: Any) -> Any:
    """Writes a plan to a JoinedPrompt, or to what its KV should be."""
    if all(isinstance(part, int) for part in plan):
        to.append(plan)
        return to
    for part in plan:
        if isinstance(part, tuple):
            to.join([write(to.copy(), branch) for branch in part[1]])
        else:
            to.append(part)
    return to


def untrimmed(request: Request) -> bool:
    """The prompt ends with ordinary text, so that `write` says what its KV is."""
    return not request.splices or request.splices[-1].end < request.prompt_tokens


class Traffic:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: list[Request] = []
        self.expected: dict[Request, list[int]] = {}

    def run(self, script: list[Any]) -> None:
        executor: Any = self.engine.executor
        for action in script:
            match action:
                case ("add", prompt, max_tokens):
                    self.add(JoinedPrompt(prompt), self.written(prompt), max_tokens)
                case ("joined", base, plan, tail, max_tokens, branches_first, n):
                    whole = [[1, *base], ("join", [plan, [*plan][:1], [2, 2, *tail]]), [0, *tail]]
                    prompt = write(JoinedPrompt(), whole)
                    if branches_first:
                        self.add(JoinedPrompt([1, *base, 2, 2, *tail]), None, 2)
                        self.step()
                    self.add(prompt, write(Written(), whole), max_tokens, n)
                case ("step", n):
                    for _ in range(n):
                        self.step()
                case ("abort", i) if self.requests:
                    self.engine.abort(self.requests[i % len(self.requests)])
                    self.engine.check()
                case ("fail",):
                    executor.fail_at.add(self.engine._n_steps)
                case ("lose",):
                    executor.lose_at.add(self.engine._n_steps)
                case ("flush",):
                    self.engine.flush_cache()
                    self.engine.check()
        for _ in range(3000):
            if not self.engine.has_work:
                return
            self.step()
        raise AssertionError("requests are left after 3000 steps")

    def written(self, prompt: list[int]) -> Written:
        found = Written()
        found.append(prompt)
        return found

    def step(self) -> None:
        if self.engine.has_work:
            self.engine.step()
            self.engine.check()

    def add(self, prompt: JoinedPrompt, written: Written | None, max_tokens: int, n: int = 1) -> None:
        try:
            made = self.engine.add(prompt.tokens, SamplingParams(max_tokens=max_tokens, n=n), splices=prompt.splices)
        except TooLong:
            return
        self.requests += made
        if written is not None:
            for request in made:
                self.expected[request] = written.copy().go_on(max_tokens)


@given(config=configs, script=actions)
@settings(max_examples=150, deadline=None)
def test_joined_prompts_in_any_traffic_are_answered_right(config: dict[str, Any], script: list[Any]) -> None:
    traffic = Traffic(make(**config))
    traffic.run(script)
    for request in traffic.requests:
        assert request.finished
        if request.finish_reason is FinishReason.ERROR:
            assert "hiccuped" in str(request.error)
            continue
        if request in traffic.expected:
            assert list(request.output) == traffic.expected[request][: request.output_tokens]
        if request.finish_reason is FinishReason.LENGTH:
            assert request.output_tokens == request.max_tokens
        assert 0 <= request.n_cached < request.prompt_tokens
        assert request.assembly is None
    engine = traffic.engine
    assert_the_cache_is_true(engine)
    memory = engine.memory
    assert memory.pool.n_free * config["page_size"] + memory.cache.cached_tokens == (
        memory.pool.n_pages * config["page_size"]
    )
    assert memory.cache.evictable_tokens == memory.cache.cached_tokens


@given(config=configs, script=actions)
@settings(max_examples=50, deadline=None)
def test_every_decision_about_joined_prompts_is_found_again(
    config: dict[str, Any], script: list[Any], tmp_path_factory: Any
) -> None:
    traffic = Traffic(make(**config))
    traffic.run(script)
    path = tmp_path_factory.mktemp("log") / "events.parquet"
    traffic.engine.log.write(path)
    recorded = type(traffic.engine.log).read(path)
    assert first_difference(recorded, replay(recorded)) is None
