"""The table of whole prompts, and no cache at all."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import make_cache
from engine.cache.base import Cache, Inserted
from engine.cache.page_pool import PagePool
from engine.policies.registry import make_policy
from engine.request import Request, SamplingParams


def cache_of(kind: str, page: int = 1, pages: int = 1000, policy: str = "lru") -> Cache:
    return make_cache(
        kind,
        page_size=page,
        capacity_tokens=pages * page,
        eviction=make_policy("eviction", policy),
        rng=random.Random(0),
        cost=lambda _, n: float(n),
    )


def request_of(tokens: tuple[int, ...] | str) -> Request:
    key = np.array([ord(c) for c in tokens] if isinstance(tokens, str) else tokens, np.int64)
    return Request(id=1, key=key, params=SamplingParams())


def put(cache: Cache, text: str, limit: int | None = None) -> Inserted:
    request = request_of(text)
    match = cache.match(request.key, "", len(text) if limit is None else limit)
    lock = cache.acquire(match, request, first=True)
    start = int(cache.cached_tokens)
    return cache.insert(request.key, np.arange(start, start + len(text), dtype=np.int32), lock, request)


def cached(cache: Cache, text: str, limit: int | None = None) -> int:
    return cache.match(request_of(text).key, "", len(text) if limit is None else limit).n_tokens


def test_prompts_that_only_begin_alike_share_nothing() -> None:
    cache = cache_of("flat")
    put(cache, "system: first question")
    assert cached(cache, "system: second question") == 0
    assert put(cache, "system: second question").n_new == len("system: second question")


def test_a_prompt_goes_on_from_a_whole_entry() -> None:
    cache = cache_of("flat")
    put(cache, "system: ")
    assert cached(cache, "system: question") == 8
    assert put(cache, "system: question").n_new == 8
    assert cached(cache, "system: question and more") == 16
    pages = cache.match(request_of("system: question and more").key, "", 25).pages()
    assert pages.tolist() == [*range(8), *range(16, 24)]


def test_the_longest_chain_of_entries_wins() -> None:
    cache = cache_of("flat")
    put(cache, "abcd")
    put(cache, "a")  # a separate entry: nothing is split
    put(cache, "abcx")
    assert cached(cache, "abcxyz") == 4
    assert cached(cache, "abcdef") == 4
    assert cached(cache, "abc") == 1


def test_an_identical_prompt_uses_its_entry_up_to_the_limit_and_locks_it_whole() -> None:
    cache = cache_of("flat")
    cache.unlock(put(cache, "abcd").lock)
    request = request_of("abcd")
    match = cache.match(request.key, "", 3)
    assert match.n_tokens == 3
    lock = cache.acquire(match, request, first=True)
    assert lock.n_tokens == 3
    assert cache.evictable_tokens == 0
    inserted = cache.insert(request.key, np.array([9, 9, 9, 9], np.int32), lock, request)
    assert (inserted.n_new, inserted.n_duplicate, inserted.lock.n_tokens) == (0, 1, 4)
    cache.unlock(inserted.lock)
    cache.check()
    assert cache.evictable_tokens == 4


def test_entries_go_whole() -> None:
    cache = cache_of("flat")
    cache.unlock(put(cache, "abcdef").lock)
    (gone,) = cache.evict(1, None)
    assert gone.n_tokens == 6
    assert cache.cached_tokens == 0


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=10).map(tuple), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.sampled_from(["flat", "none", "radix"]), st.sampled_from([1, 2]), st.sampled_from(["lru", "random"]))
def test_no_page_is_lost_and_no_page_lies(prompts: list[tuple[int, ...]], kind: str, page: int, policy: str) -> None:
    """Every cached page holds the tokens it was written with."""
    pool = PagePool(16)
    cache = cache_of(kind, page, 16, policy)
    written: dict[int, tuple[int, ...]] = {}
    held = []
    for tokens in prompts:
        request = request_of(tokens)
        match = cache.match(request.key, "", len(tokens) - 1)
        shared = match.pages()
        for i, p in enumerate(shared.tolist()):
            assert written[p] == tokens[: (i + 1) * page]
        lock = cache.acquire(match, request, first=True)
        need = -(-len(tokens) // page) - len(shared)
        for gone in cache.evict((need - pool.n_free) * page, request):
            pool.free(gone.pages)
        own = pool.alloc(need)
        if own is None:
            cache.unlock(lock)
            continue
        pages = np.concatenate([shared, own])
        for i in range(len(shared), len(pages)):
            written[int(pages[i])] = tokens[: (i + 1) * page]
        inserted = cache.insert(request.key, pages, lock, request)
        first = (lock.n_tokens + inserted.n_duplicate) // page
        last = first + inserted.n_new // page
        pool.free(pages[lock.n_tokens // page : first])
        pool.free(pages[last:])
        held.append(inserted.lock)
        if len(held) > 1:
            cache.unlock(held.pop(0))
        cache.check()
        assert pool.n_free + cache.cached_tokens // page == pool.n_pages
    for lock in held:
        cache.unlock(lock)
    pool.free(cache.reset())
    assert pool.n_free == pool.n_pages


def test_none_matches_nothing_and_keeps_nothing() -> None:
    cache = cache_of("none")
    inserted = put(cache, "abc")
    assert (inserted.n_new, inserted.n_duplicate) == (0, 0)
    assert cached(cache, "abc") == cache.cached_tokens == 0
    cache.unlock(inserted.lock)
    cache.check()
