"""Eviction counted by code that isn't ours: libcachesim's flat caches.

A flat LRU over the blocks of each request b1 .. bn followed by bn .. b1 has exactly the misses of leaf-first LRU on the
tree of prefixes: touching in reverse leaves a prefix more recent than what follows it. On trees of depth 1 every policy
is its flat twin.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache.page_pool import PagePool
from engine.cache.radix_tree import RadixTree
from engine.policies.registry import make_policy
from engine.request import Request, SamplingParams

lcs = pytest.importorskip("libcachesim", reason="libcachesim isn't installed")

Trace = Sequence[tuple[int, ...]]


def tree_misses(trace: Trace, capacity_pages: int, policy: str, page: int) -> int:
    """Pages computed when the prompts of `trace` (in pages of equal tokens) come one at a time."""
    pool = PagePool(capacity_pages)
    tree = RadixTree(
        page_size=page,
        capacity_tokens=capacity_pages * page,
        eviction=make_policy("eviction", policy),
        rng=random.Random(0),
        cost=lambda _, n: float(n),
    )
    misses = 0
    for i, blocks in enumerate(trace):
        key = np.repeat(np.array(blocks, np.int64), page)
        request = Request(id=i, key=key, params=SamplingParams())
        match = tree.match(key, "", len(key))
        cached = match.pages()
        lock = tree.acquire(match, request, first=True)
        need = len(blocks) - len(cached)
        for gone in tree.evict((need - pool.n_free) * page, request):
            pool.free(gone.pages)
        own = pool.alloc(need)
        assert own is not None
        tree.unlock(tree.insert(key, np.concatenate([cached, own]), lock, request).lock)
        misses += need
    tree.check()
    return misses


def flat_misses(blocks: Sequence[int], capacity: int, kind: str) -> int:
    cache = getattr(lcs, kind)(cache_size=capacity, hashpower=12)
    request = lcs.Request()
    request.obj_size = 1
    misses = 0
    for i, block in enumerate(blocks):
        request.obj_id, request.clock_time = block, i
        misses += not cache.get(request)
    return misses


def forward_and_reverse(trace: Trace) -> list[int]:
    number: dict[tuple[int, ...], int] = {}
    blocks: list[int] = []
    for prompt in trace:
        path = [number.setdefault(prompt[: i + 1], len(number) + 1) for i in range(len(prompt))]
        blocks += [*path, *reversed(path)]
    return blocks


TRACES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8).map(tuple), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None)
@given(TRACES, st.integers(8, 30), st.sampled_from([1, 3]))
def test_tree_lru_misses_as_flat_lru_forward_and_back(trace: Trace, capacity: int, page: int) -> None:
    assert tree_misses(trace, capacity, "lru", page) == flat_misses(forward_and_reverse(trace), capacity, "LRU")


def long_trace(seed: int, n: int) -> Trace:
    rng = random.Random(seed)
    prompts: list[tuple[int, ...]] = [()]
    for _ in range(n):
        stem = prompts[min(len(prompts) - 1, int(rng.paretovariate(0.7)) - 1)]
        tail = tuple(rng.randrange(50) for _ in range(rng.randrange(1, 12)))
        prompts.append((stem[: rng.randrange(len(stem) + 1)] + tail)[:40])
    return prompts[1:]


@pytest.mark.parametrize("capacity", [40, 200, 2000])
def test_tree_lru_misses_as_flat_lru_on_a_long_trace(capacity: int) -> None:
    trace = long_trace(capacity, 4000)
    assert tree_misses(trace, capacity, "lru", 1) == flat_misses(forward_and_reverse(trace), capacity, "LRU")


def test_forward_alone_is_another_cache() -> None:
    """The control: without the reverse pass the flat LRU counts other misses, so the comparison can fail."""
    trace = long_trace(200, 4000)
    number: dict[tuple[int, ...], int] = {}
    forward = [number.setdefault(p[: i + 1], len(number) + 1) for p in trace for i in range(len(p))]
    assert tree_misses(trace, 200, "lru", 1) != flat_misses(forward, 200, "LRU")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=300), st.integers(1, 20), st.sampled_from(["lru", "fifo"]))
def test_on_trees_of_depth_one_a_policy_is_its_flat_twin(blocks: list[int], capacity: int, policy: str) -> None:
    assert tree_misses([(b,) for b in blocks], capacity, policy, 1) == flat_misses(blocks, capacity, policy.upper())
