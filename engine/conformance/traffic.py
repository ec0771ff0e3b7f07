"""Random traffic in a small pool: what happens to a cache while an engine runs, without the engine."""

from __future__ import annotations

import random
from typing import NamedTuple, TypeVar

import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from engine.cache.base import Evicted, Lock, Pages
from engine.cache.page_pool import PagePool
from engine.cache.radix_node import NO_PAGES
from engine.cache.radix_tree import RadixTree
from engine.policies.base import ConversationEnd, EvictionPolicy, Pin, Prefetch, Unpin
from engine.request import Request, SamplingParams, Tokens


class Arrive(NamedTuple):
    """A request comes; with `brief` it ends at once."""

    prompt: tuple[int, ...]
    namespace: str
    client: str
    priority: int
    brief: bool


class Finish(NamedTuple):
    """The running request at `which` (modulo their number) ends with `output`."""

    which: int
    output: tuple[int, ...]


class Evict(NamedTuple):
    n_tokens: int


class Wait(NamedTuple):
    seconds: float


class Hinted(NamedTuple):
    kind: int
    prefix: tuple[int, ...]


E = TypeVar("E")
Event = Arrive | Finish | Evict | Wait | Hinted

_chat = (
    (1, 1, 2, 1),
    (1, 1, 2, 1, 0, 3, 3),
    (1, 1, 2, 1, 0, 3, 3, 0, 2, 2, 1),
    (1, 1, 2, 2, 4, 4),
    (3, 1, 2, 1, 3, 1, 2, 1),
)
_prompts = st.one_of(
    st.sampled_from(_chat),
    st.sampled_from(_chat),
    st.lists(st.integers(0, 1), min_size=1, max_size=16).map(tuple),
    st.tuples(st.integers(0, 3), st.integers(1, 14)).map(lambda t: (t[0],) * t[1]),
    st.lists(st.sampled_from([(5, 5, 5, 5), (6, 6, 6, 6), (7,), (8, 9)]), min_size=1, max_size=4).map(
        lambda parts: tuple(token for part in parts for token in part)
    ),
)
arrivals = st.builds(
    Arrive,
    _prompts,
    st.sampled_from(["", "", "", "tenant"]),
    st.sampled_from(["a", "b", "c"]),
    st.integers(-1, 1),
    st.booleans(),
)
finishes = st.builds(Finish, st.integers(0, 7), st.lists(st.integers(0, 2), max_size=5).map(tuple))
events = st.one_of(
    arrivals,
    arrivals,
    finishes,
    finishes,
    st.builds(Evict, st.integers(1, 12)),
    st.builds(Wait, st.sampled_from([0.5, 10.0])),
    st.builds(Hinted, st.integers(0, 3), _prompts),
)


class Script(NamedTuple):
    page_size: int
    n_pages: int
    events: tuple[Event, ...]


def script_of(event: st.SearchStrategy[E], length: int = 40) -> st.SearchStrategy[tuple[E, ...]]:
    """About `length` events; a failing script shrinks to the few that matter."""
    slots = st.tuples(*[st.one_of(st.none(), event, event, event)] * length)
    return slots.map(lambda drawn: tuple(one for one in drawn if one is not None))


scripts = st.builds(Script, st.sampled_from([1, 2, 4]), st.integers(6, 24), script_of(events))


def random_scripts(examples: int, *, shrink: bool) -> settings:
    """The same scripts at every run, and no time limit on any of them."""
    phases = (Phase.explicit, Phase.generate, Phase.shrink) if shrink else (Phase.explicit, Phase.generate)
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


def make_request(number: int, arrive: Arrive, now: float) -> Request:
    key = np.array(arrive.prompt, np.int64)
    return Request(
        id=number,
        key=key,
        params=SamplingParams(max_tokens=8),
        namespace=arrive.namespace,
        client=arrive.client,
        conversation=arrive.client,
        priority=arrive.priority,
        arrival=now,
        tokens=np.concatenate([key, np.zeros(8, np.int64)]),
        n_tokens=len(key),
    )


class Held(NamedTuple):
    request: Request
    lock: Lock
    own: Pages
    """Pages that the request holds beside the cache's."""


class Traffic:
    """A radix tree, a pool and running requests, driven event by event. Keeps a record of all evictions."""

    def __init__(self, policy: EvictionPolicy, page_size: int, n_pages: int, seed: int = 0) -> None:
        self.pool = PagePool(n_pages)
        self.tree = RadixTree(
            page_size=page_size,
            capacity_tokens=n_pages * page_size,
            eviction=policy,
            rng=random.Random(seed),
            cost=lambda start, n: n * (1.0 + start / 64),
        )
        self.page_size = page_size
        self.running: list[Held] = []
        self.evictions: list[tuple[int, int, int]] = []
        """(node id, start, tokens) of each, in order."""
        self._requests = 0

    def play(self, event: Event) -> None:
        match event:
            case Arrive():
                self._requests += 1
                if self.start(make_request(self._requests, event, self.tree.now)) and event.brief:
                    self.finish(self.running.pop(), ())
            case Finish(which, output):
                if self.running:
                    self.finish(self.running.pop(which % len(self.running)), output)
            case Evict(n_tokens):
                self.evict(n_tokens, None)
            case Wait(seconds):
                self.tree.now += seconds
            case Hinted(kind, prefix):
                self.tree.hint(
                    (Prefetch(prefix, 2), Pin(prefix, self.tree.now + 5.0), Unpin(prefix), ConversationEnd("a"))[kind]
                )

    def start(self, request: Request) -> bool:
        """Admits a request: match, lock, evict, allocate, insert. False when the pool can't hold it now."""
        tree, page = self.tree, self.page_size
        match = tree.match(request.key, request.namespace, len(request.key) - 1)
        cached = match.pages()
        tree.miss(request, request.key, match)
        lock = tree.acquire(match, request, first=True)
        own = self._alloc(-(-len(request.key) // page) - len(cached), request)
        if own is None:
            tree.unlock(lock)
            return False
        self.running.append(self._insert(request, request.key, np.concatenate([cached, own]), lock, NO_PAGES))
        return True

    def finish(self, held: Held, output: tuple[int, ...]) -> None:
        """Ends a request; its output goes to the tree when there is room for it."""
        request, page = held.request, self.page_size
        key = np.concatenate([request.key, np.array(output, np.int64)])
        extra = -(-len(key) // page) - held.lock.n_tokens // page
        own = self._alloc(extra, request) if output else None
        if own is not None:
            pages = np.concatenate([np.zeros(held.lock.n_tokens // page, np.int32), own])
            held = self._insert(request, key, pages, held.lock, held.own)
        self.tree.done(request, held.lock)
        self.tree.unlock(held.lock)
        self.pool.free(held.own)

    def _insert(self, request: Request, key: Tokens, pages: Pages, lock: Lock, own: Pages) -> Held:
        inserted = self.tree.insert(key, pages, lock, request)
        first = (lock.n_tokens + inserted.n_duplicate) // self.page_size
        last = first + inserted.n_new // self.page_size
        kept = np.concatenate([own, pages[lock.n_tokens // self.page_size : first], pages[last:]])
        return Held(request, inserted.lock, kept)

    def _alloc(self, n: int, request: Request) -> Pages | None:
        short = n - self.pool.n_free
        if short > 0:
            if short * self.page_size > self.tree.evictable_tokens:
                return None
            self.evict(short * self.page_size, request)
        return self.pool.alloc(n)

    def evict(self, n_tokens: int, request: Request | None) -> list[Evicted]:
        promised = min(n_tokens, self.tree.evictable_tokens)
        gone = self.tree.evict(n_tokens, request)
        for one in gone:
            self.pool.free(one.pages)
            self.evictions.append((one.node, one.start, one.n_tokens))
        freed = sum(one.n_tokens for one in gone)
        assert freed >= promised, f"{promised} tokens could be evicted, only {freed} were"
        return gone

    def check(self) -> None:
        """Tree and pool are sound, no page is lost, and all that running requests hold is still cached."""
        self.tree.check()
        self.pool.check([self.tree.pages(), *(held.own for held in self.running)])
        for held in self.running:
            n = held.lock.n_tokens
            still = self.tree.match(held.request.key, held.request.namespace, n).n_tokens
            assert still == n, f"request {held.request.id} holds {n} tokens, {still} of them are still cached"
