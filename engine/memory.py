"""What requests hold of the KV pool: matched prefixes under lock, pages of their own, and how both come and go.

Every page is in one of three states: free, the cache's, or a running request's own (`check` counts them).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from engine.cache.base import NO_MATCH, Cache, Match, Pages
from engine.cache.page_pool import PagePool
from engine.clock import stopwatch
from engine.executor.base import Slots
from engine.log import Event, Log
from engine.metrics import Histogram
from engine.policies.base import RetentionPolicy, broken
from engine.policies.guard import Guard
from engine.request import Request, Status

IDLE_SECONDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 180.0, 600.0, 1800.0, 3600.0, 14400.0, 86400.0)

P = ParamSpec("P")
R = TypeVar("R")


def _timed(
    method: Callable[Concatenate[KVMemory, P], R],
) -> Callable[Concatenate[KVMemory, P], R]:
    @functools.wraps(method)
    def timed(self: KVMemory, /, *args: P.args, **kwargs: P.kwargs) -> R:
        begun = stopwatch()
        try:
            return method(self, *args, **kwargs)
        finally:
            self.seconds += stopwatch() - begun

    return timed


class KVMemory:
    """The cache and the pool as the scheduler uses them. All sizes are tokens unless a name says pages."""

    def __init__(self, cache: Cache, pool: PagePool, retention: RetentionPolicy, log: Log) -> None:
        self.cache = cache
        self.pool = pool
        self.guard = Guard(retention)
        self.log = log
        self.page_size = cache.page_size
        self.step = 0
        self.seconds = 0.0
        """Time spent in here so far."""
        self.evicted_idle = Histogram(IDLE_SECONDS)
        """Of the pages evicted so far: seconds since each was last used."""

    @property
    def available(self) -> int:
        """What could be had by taking free pages and evicting all that may be evicted."""
        return self.pool.n_free * self.page_size + self.cache.evictable_tokens

    def whole_pages(self, n_tokens: int) -> int:
        """Tokens of the pages that `n_tokens` tokens need."""
        return -(-n_tokens // self.page_size) * self.page_size

    @_timed
    def match(self, request: Request) -> Match:
        """Longest cached prefix the request may use. Touches nothing.

        The last token is always computed, and so is every position whose logits are asked for. Of a branch none are.
        """
        limit = min(request.n_tokens - (request.owner is None), request.n_cacheable)
        params = request.params
        if params.prompt_logprobs is not None:
            next_scored = params.prompt_logprobs_start + request.n_scored
            if next_scored < request.prompt_tokens:
                limit = min(limit, next_scored - 1)
        if params.logprobs is not None and request.constraint is not None:
            limit = min(limit, request.prompt_tokens + len(request.logprobs) - 1)
        return self.cache.match(request.tokens[: request.n_tokens], request.namespace, limit)

    def unlocked_in(self, match: Match) -> int:
        """Tokens that count as evictable now and won't once the match is locked."""
        path = match.path
        if not path:
            return 0
        inner = sum(node.n_tokens for node in path[:-1] if node.locks == 0)
        last = path[-1].n_tokens if self.cache.whole_entries else match.n_last
        return inner + (last if path[-1].locks == 0 else 0)

    @_timed
    def admit(self, request: Request, match: Match) -> None:
        """Locks the match and points the request's page table at it."""
        first = request.preemptions == 0
        self.cache.miss(request, request.tokens[: min(request.n_tokens, request.n_cacheable)], match)
        self._use(request, match, first=first)

    @_timed
    def borrow(self, branch: Request, owner: Request, n_tokens: int) -> bool:
        """Points a stand-in's page table at its owner's pages of the first `n_tokens` tokens.

        The last page, where the tokens don't fill it, is one of its own, to be copied. Nothing of the stand-in will
        enter the cache. False: no page is to be had, and nothing was done.
        """
        whole = n_tokens // self.page_size
        branch.n_cacheable = 0
        branch.lock = self.cache.acquire(NO_MATCH, branch, first=False)
        branch.pages[:whole] = owner.pages[:whole]
        branch.n_pages = branch.n_shared_pages = whole
        branch.pages_version += 1
        if not self.grow(branch, n_tokens):
            self.release(branch, keep=False, ended=False)
            return False
        branch.n_computed = n_tokens
        return True

    def slots(self, request: Request, start: int, end: int) -> Slots:
        """Where K and V of tokens[start:end] are: int64."""
        at = np.arange(start, end)
        return request.pages[at // self.page_size].astype(np.int64) * self.page_size + at % self.page_size

    @_timed
    def extend(self, request: Request) -> int:
        """Takes over what others have cached of a prompt under way since its last chunk. Returns the tokens gained."""
        if request.n_pages != request.n_shared_pages or (request.assembly is not None and request.assembly.branches):
            return 0
        match = self.match(request)
        gained = match.n_tokens - request.n_computed
        if gained <= 0:
            return 0
        held = request.lock
        self._use(request, match, first=False)
        self.cache.unlock(held)
        return gained

    def _use(self, request: Request, match: Match, *, first: bool) -> None:
        pages = match.pages()
        request.lock = self.cache.acquire(match, request, first=first)
        request.pages[: len(pages)] = pages
        request.n_pages = request.n_shared_pages = len(pages)
        request.pages_version += 1
        request.n_computed = match.n_tokens

    @_timed
    def grow(self, request: Request, n_tokens: int) -> bool:
        """Gives the request pages for its first `n_tokens` tokens, evicting if need be. False: not to be had."""
        wanted = -(-n_tokens // self.page_size)
        missing = wanted - request.n_pages
        if missing <= 0:
            return True
        short = missing - self.pool.n_free
        if short > 0:
            if short * self.page_size > self.cache.evictable_tokens:
                return False
            self._evict(short * self.page_size, request)
        pages = self.pool.alloc(missing)
        if pages is None:
            return False
        request.pages[request.n_pages : wanted] = pages
        request.n_pages = wanted
        return True

    def _evict(self, n_tokens: int, request: Request) -> None:
        for gone in self.cache.evict(n_tokens, request):
            self.pool.free(gone.pages)
            self.evicted_idle.add(gone.idle, len(gone.pages))
            self._decide("evict", -1, gone.start, gone.n_tokens, f"{gone.node}|{gone.namespace}")

    @_timed
    def publish(self, request: Request, n_tokens: int) -> None:
        """Puts the first `n_tokens` tokens of a prompt in the cache, before the step that computes them has run.

        Left out where somebody else has cached part of that already: the request goes on with its own pages.
        """
        if request.n_shared_pages * self.page_size != request.lock.n_tokens:
            return
        n_tokens = min(n_tokens, request.n_cacheable)
        if self.cache.whole_entries and n_tokens < min(request.prompt_tokens, request.n_cacheable):
            return
        whole = n_tokens // self.page_size * self.page_size
        if whole <= request.lock.n_tokens:
            return
        if self.cache.match(request.tokens[:whole], request.namespace, whole).n_tokens > request.lock.n_tokens:
            return
        self._insert(request, whole)

    def _insert(self, request: Request, n_tokens: int) -> tuple[int, int]:
        """Inserts what the retention policy keeps of tokens[lock : n_tokens]. Returns the range of pages given away."""
        before = request.lock.n_tokens
        if request.kept_short:
            return 0, 0
        keep = self.guard.ask("keep", request, n_tokens - before, self.cache.ctx)
        if not isinstance(keep, int):
            raise broken(self.guard.policy, "keep", f"gave {keep!r}; it must be a number of tokens")
        end = min(n_tokens, before + max(0, keep) // self.page_size * self.page_size)
        request.kept_short = end < n_tokens
        if end <= before:
            return 0, 0
        inserted = self.cache.insert(
            request.tokens[:end], request.pages[: end // self.page_size], request.lock, request
        )
        request.lock = inserted.lock
        first = (before + inserted.n_duplicate) // self.page_size
        last = first + inserted.n_new // self.page_size
        if first == request.n_shared_pages:
            request.n_shared_pages = last
        self._decide("insert", request.id, inserted.n_new, inserted.n_duplicate)
        return first, last

    @_timed
    def release(self, request: Request, *, keep: bool, ended: bool) -> None:
        """Gives back all that the request holds; what it computed goes to the cache if `keep`.

        So do the stand-ins for its branches, and they are finished.
        """
        if request.assembly is not None:
            for branch in request.assembly.branches.values():
                self.release(branch, keep=keep, ended=False)
            request.assembly = None
        if request.owner is not None:
            request.status = Status.FINISHED
        own = np.ones(request.n_pages, np.bool_)
        own[: request.n_shared_pages] = False
        whole = min(request.n_computed, request.n_cacheable) // self.page_size * self.page_size
        if keep and whole > request.lock.n_tokens:
            first, last = self._insert(request, whole)
            own[first:last] = False
        if ended:
            self.cache.done(request, request.lock)
        self.cache.unlock(request.lock)
        self.pool.free(request.pages[: request.n_pages][own])
        request.lock = None
        request.n_pages = request.n_shared_pages = request.n_computed = 0

    def reset(self) -> Pages:
        """Forgets all that isn't locked. Returns the pages that are free now."""
        pages = self.cache.reset()
        self.pool.free(pages)
        return pages

    def check(self, running: Iterable[Request]) -> None:
        """Raises AssertionError unless free + cached + held by requests is the pool, and no page is held twice."""
        self.cache.check()
        held = [request.pages[request.n_shared_pages : request.n_pages] for request in _with_branches(running)]
        n_held = sum(len(pages) for pages in held)
        n_cached = self.cache.cached_tokens // self.page_size
        total = self.pool.n_free + n_cached + n_held
        assert total == self.pool.n_pages, (
            f"pages are lost or made up: {self.pool.n_free} free + {n_cached} cached + {n_held} held "
            f"!= {self.pool.n_pages}"
        )
        if n_held:
            own = np.concatenate(held)
            assert len(np.unique(own)) == n_held, "a page is held by two requests"

    def _decide(self, kind: str, request: int, a: int, b: int, text: str = "") -> None:
        self.log.add(Event(self.step, self.cache.now, "decision", kind, request, a, b, (), text))


def _with_branches(requests: Iterable[Request]) -> Iterator[Request]:
    for request in requests:
        yield request
        if request.assembly is not None:
            yield from _with_branches(request.assembly.branches.values())
