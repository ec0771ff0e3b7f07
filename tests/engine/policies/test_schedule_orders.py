"""In which order the schedule policies admit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.conformance.scheduling import Desk, Script
from engine.policies.base import RequestView, SchedulePolicy
from engine.policies.registry import make_policy
from engine.policies.scheduling.cache_aware import CacheAware
from engine.policies.scheduling.prompt_order import PromptOrder
from engine.request import Request, SamplingParams


def request_of(
    number: int, text: str, *, arrival: float = 0.0, priority: int = 0, output: int = 8, predicted: int | None = None
) -> Request:
    key = np.array([ord(c) for c in text], np.int64)
    tokens = np.concatenate([key, np.zeros(output, np.int64)])
    return Request(
        id=number,
        key=key,
        params=SamplingParams(max_tokens=output),
        arrival=arrival,
        priority=priority,
        predicted_output=predicted,
        tokens=tokens,
        n_tokens=len(key),
    )


def desk_of(policy: SchedulePolicy, cached: Sequence[str] = (), n_pages: int = 4000) -> Desk:
    desk = Desk(policy, Script(1, n_pages, ()))
    for i, text in enumerate(cached):
        assert desk.traffic.start(request_of(-1 - i, text))
        desk.traffic.finish(desk.traffic.running.pop(), ())
    return desk


def admitted(desk: Desk, requests: Sequence[Request], n: int = 1000) -> list[int]:
    """Ids in the order of admission when all wait at once."""
    desk.waiting = list(requests)
    for request in requests:
        desk.policy.on_arrival(request, desk)
    desk.admit(n, 1000)
    return [number for what, number in desk.decisions if what == "order"]


def test_fcfs_follows_arrival_whatever_the_queue_says() -> None:
    requests = [request_of(1, "a", arrival=3.0), request_of(2, "b", arrival=1.0), request_of(3, "c", arrival=1.0)]
    assert admitted(desk_of(make_policy("scheduling", "fcfs")), requests) == [2, 3, 1]


def test_priority_comes_before_arrival() -> None:
    requests = [
        request_of(1, "a", priority=-1),
        request_of(2, "b", arrival=9.0, priority=5),
        request_of(3, "c", priority=5),
    ]
    assert admitted(desk_of(make_policy("scheduling", "priority")), requests) == [3, 2, 1]


def test_the_smallest_priority_gives_way_first() -> None:
    desk = desk_of(make_policy("scheduling", "priority"))
    running = [request_of(1, "a", priority=1), request_of(2, "b", priority=0), request_of(3, "c", priority=0)]
    assert [r.id for r in desk.policy.preempt(running, [], 1, desk)] == [3, 2, 1]
    assert list(desk.policy.preempt(running, [], 0, desk)) == []


def test_lof_takes_the_longest_output_first_by_prediction_where_there_is_one() -> None:
    requests = [
        request_of(1, "a", output=10),
        request_of(2, "b", output=100, predicted=5),
        request_of(3, "c", output=50),
    ]
    assert admitted(desk_of(make_policy("scheduling", "lof")), requests) == [3, 1, 2]


def test_random_is_a_permutation_that_the_seed_repeats() -> None:
    requests = [request_of(i, "x" * i) for i in range(1, 20)]
    first = admitted(desk_of(make_policy("scheduling", "random")), requests)
    second = admitted(desk_of(make_policy("scheduling", "random")), requests)
    assert first == second
    assert sorted(first) == list(range(1, 20))
    assert first != sorted(first)


def test_dfs_weight_goes_down_the_heaviest_branch_first() -> None:
    desk = desk_of(make_policy("scheduling", "dfs_weight"), ["tree/left/a", "tree/left/b", "tree/right/c", "pond"])
    requests = [
        request_of(1, "nothing cached"),
        request_of(2, "pond!!"),
        request_of(3, "tree/right/c!!"),
        request_of(4, "tree/left/b!!"),
        request_of(5, "tree/left/a!!"),
        request_of(6, "tree/?"),
    ]
    assert admitted(desk, requests) == [4, 5, 3, 6, 2, 1]


def test_cache_aware_takes_the_longest_match_first_and_then_arrival() -> None:
    desk = desk_of(CacheAware(), ["system prompt A", "system B"])
    requests = [
        request_of(1, "unknown"),
        request_of(2, "system B?", arrival=2.0),
        request_of(3, "system prompt A?", arrival=5.0),
        request_of(4, "system B!", arrival=1.0),
    ]
    assert admitted(desk, requests) == [3, 4, 2, 1]


def test_cache_aware_brings_equal_uncached_prefixes_next_to_each_other() -> None:
    subjects = ["algebra: ", "botany: ", "chemistry: "]
    requests = [
        request_of(10 * turn + i, f"{subject}question {turn}", arrival=float(turn))
        for turn in range(5)
        for i, subject in enumerate(subjects)
    ]
    assert [number % 10 for number in admitted(desk_of(CacheAware()), requests)] == [0] * 5 + [1] * 5 + [2] * 5


class Counting(Desk):
    """Counts how often the policy looks a prompt up."""

    looked_up = 0

    def match(self, request: RequestView) -> int:
        self.looked_up += 1
        return super().match(request)

    def _world(self) -> None:
        """Unwatched: the kit has its own tests."""


@pytest.mark.parametrize("n", [200, 800])
def test_cache_aware_looks_up_a_few_prompts_per_admission_not_all(n: int) -> None:
    desk = Counting(CacheAware(), Script(1, 60_000, ()))
    requests = [request_of(i, f"subject {i % 4}: question {i}") for i in range(n)]
    assert len(admitted(desk, requests)) == n
    assert desk.looked_up <= 64 + 6 * n


def greedy(desk: Desk, waiting: list[Request]) -> list[int]:
    """What it should do, the slow way: look up everybody before each admission."""
    order: list[int] = []
    while waiting:
        best = min(waiting, key=lambda r: (-desk.match(r), r.arrival, r.id))
        order.append(best.id)
        waiting.remove(best)
        assert desk.traffic.start(best)
    return order


PROMPTS = st.lists(st.text("ab", min_size=1, max_size=9), min_size=1, max_size=14)


@settings(max_examples=150, deadline=None)
@given(PROMPTS, PROMPTS)
def test_cache_aware_admits_as_if_it_looked_everybody_up_each_time(cached: list[str], prompts: list[str]) -> None:
    def requests() -> list[Request]:
        return [request_of(i, text, arrival=float(i % 3)) for i, text in enumerate(prompts)]

    fast = admitted(desk_of(CacheAware(), cached), requests())
    assert fast == greedy(desk_of(CacheAware(), cached), requests())


@given(st.lists(st.text("abc", max_size=6), max_size=20), st.text("abc", max_size=6), st.integers(0, 3))
def test_neighbours_are_all_that_share_more_and_only_those(texts: list[str], text: str, beyond: int) -> None:
    order = PromptOrder()
    requests = [request_of(i, t) for i, t in enumerate(texts)]
    for request in requests:
        order.add(request)

    def common(a: str, b: str) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))

    found = {other.id: n for other, n in order.neighbours(request_of(99, text), beyond)}
    assert found == {i: common(t, text) for i, t in enumerate(texts) if common(t, text) > beyond}
    for request in requests[::2]:
        order.remove(request)
    assert sorted(r.id for r in order) == [r.id for r in requests[1::2]]
