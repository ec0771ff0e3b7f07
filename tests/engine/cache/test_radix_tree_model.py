"""The radix tree against a brute-force model: a dict from every cached prefix to the page of its last tokens."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.cache.base import Lock
from engine.cache.page_pool import PagePool
from engine.cache.radix_tree import RadixTree
from engine.policies.registry import make_policy
from engine.request import Request, SamplingParams

PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(tuple)
NAMESPACE = st.sampled_from(["", "tenant"])
Prefix = tuple[str, tuple[int, ...]]


class Running(NamedTuple):
    request: Request
    tokens: tuple[int, ...]
    lock: Lock


class TreeAgainstModel(RuleBasedStateMachine):
    @initialize(
        page=st.sampled_from([1, 2, 3]),
        pages=st.integers(4, 30),
        policy=st.sampled_from(["lru", "fifo", "lfu", "slru", "random"]),
    )
    def start(self, page: int, pages: int, policy: str) -> None:
        self.page = page
        self.pool = PagePool(pages)
        self.tree = RadixTree(
            page_size=page,
            capacity_tokens=pages * page,
            eviction=make_policy("eviction", policy),
            rng=random.Random(0),
            cost=lambda _, n: float(n),
        )
        self.model: dict[Prefix, int] = {}
        self.evicted: set[Prefix] = set()
        self.refetched = 0
        self.n_evicted = 0
        self.running: list[Running] = []

    def longest(self, namespace: str, tokens: tuple[int, ...], limit: int) -> int:
        n = 0
        while n + self.page <= min(limit, len(tokens)) and (namespace, tokens[: n + self.page]) in self.model:
            n += self.page
        return n

    def forget(self, n_tokens: int) -> None:
        prefix_of = {page: prefix for prefix, page in self.model.items()}
        evictable = self.tree.evictable_tokens
        gone = self.tree.evict(n_tokens, None)
        freed = sum(one.n_tokens for one in gone)
        whole = -(-n_tokens // self.page) * self.page
        assert freed == min(whole, evictable), "evicts exactly what is needed, in whole pages, or all that may go"
        for one in gone:
            assert one.n_tokens == len(one.pages) * self.page
            self.pool.free(one.pages)
            for i, page in enumerate(one.pages.tolist()):
                prefix = prefix_of[page]
                assert prefix[0] == one.namespace
                assert len(prefix[1]) == one.start + (i + 1) * self.page
                del self.model[prefix]
                self.evicted.add(prefix)
        self.n_evicted += freed

    @rule(tokens=PROMPT, namespace=NAMESPACE, limit=st.integers(0, 14))
    def match_is_the_longest_prefix_and_changes_nothing(
        self, tokens: tuple[int, ...], namespace: str, limit: int
    ) -> None:
        def state() -> list[object]:
            return [(n.id, n.n_tokens, n.used_seq, n.hits, n.locks) for n in self.tree.nodes()]

        before = state(), self.tree.seq
        match = self.tree.match(np.array(tokens, np.int64), namespace, limit)
        assert match.n_tokens == self.longest(namespace, tokens, limit)
        expected = [self.model[namespace, tokens[: i + self.page]] for i in range(0, match.n_tokens, self.page)]
        assert match.pages().tolist() == expected
        assert (state(), self.tree.seq) == before

    @rule(tokens=PROMPT, namespace=NAMESPACE, first=st.booleans())
    def admit(self, tokens: tuple[int, ...], namespace: str, first: bool) -> None:
        key = np.array(tokens, np.int64)
        request = Request(id=1, key=key, params=SamplingParams(), namespace=namespace)
        match = self.tree.match(key, namespace, len(key) - 1)
        cached = match.pages()
        lock = self.tree.acquire(match, request, first=first)
        assert lock.n_tokens == match.n_tokens
        if first and match.path:
            assert lock.node.used_seq == self.tree.seq
        need = len(key) // self.page - len(cached)
        if need > self.pool.n_free:
            self.forget((need - self.pool.n_free) * self.page)
        own = self.pool.alloc(need)
        if own is None:
            self.tree.unlock(lock)
            return
        self.put(Running(request, tokens, lock), np.concatenate([cached, own]))

    def put(self, running: Running, pages: np.ndarray) -> None:
        request, tokens, lock = running
        whole = len(tokens) // self.page * self.page
        there = max(self.longest(request.namespace, tokens, whole), lock.n_tokens)
        inserted = self.tree.insert(np.array(tokens, np.int64), pages, lock, request)
        assert inserted.n_duplicate == there - lock.n_tokens
        assert inserted.n_new == whole - there
        assert inserted.lock.n_tokens == whole
        for end in range(there + self.page, whole + 1, self.page):
            prefix = (request.namespace, tokens[:end])
            self.model[prefix] = int(pages[end // self.page - 1])
            if prefix in self.evicted:
                self.evicted.remove(prefix)
                self.refetched += self.page
        self.pool.free(pages[lock.n_tokens // self.page : there // self.page])
        self.running.append(Running(request, tokens, inserted.lock))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), output=st.lists(st.integers(0, 2), max_size=4).map(tuple))
    def extend(self, data: st.DataObject, output: tuple[int, ...]) -> None:
        running = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        tokens = running.tokens + output
        held = running.lock.n_tokens // self.page
        own = self.pool.alloc(len(tokens) // self.page - held)
        if own is None:
            self.running.append(running)
            return
        self.put(Running(running.request, tokens, running.lock), np.concatenate([np.zeros(held, np.int32), own]))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        running = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        path = self.tree.path(running.lock)
        assert sum(node.n_tokens for node in path) == running.lock.n_tokens
        assert [node.start for node in path] == [sum(n.n_tokens for n in path[:i]) for i in range(len(path))]
        self.tree.unlock(running.lock)

    @rule(n_tokens=st.integers(1, 20))
    def evict(self, n_tokens: int) -> None:
        self.forget(n_tokens)

    @rule()
    def reset(self) -> None:
        pages = set(self.tree.reset().tolist())
        self.pool.free(np.array(sorted(pages), np.int32))
        self.model = {prefix: page for prefix, page in self.model.items() if page not in pages}
        self.evicted.clear()
        assert self.tree.evictable_tokens == 0

    @invariant()
    def sound(self) -> None:
        self.tree.check()
        self.pool.check([self.tree.pages()])
        assert self.tree.cached_tokens == len(self.model) * self.page
        assert self.tree.evicted_tokens == self.n_evicted
        assert self.tree.refetched_tokens == self.refetched
        assert sorted(self.model.values()) == sorted(self.tree.pages().tolist())

    @invariant()
    def closed_under_prefixes(self) -> None:
        for namespace, tokens in self.model:
            assert len(tokens) == self.page or (namespace, tokens[: -self.page]) in self.model

    @invariant()
    def locked_prefixes_survive(self) -> None:
        locked: set[Prefix] = set()
        for request, tokens, lock in self.running:
            locked |= {(request.namespace, tokens[:n]) for n in range(self.page, lock.n_tokens + 1, self.page)}
        assert locked <= self.model.keys()
        assert self.tree.evictable_tokens == (len(self.model) - len(locked)) * self.page


TestTreeAgainstModel = TreeAgainstModel.TestCase
TestTreeAgainstModel.settings = settings(max_examples=120, stateful_step_count=30, deadline=None)
