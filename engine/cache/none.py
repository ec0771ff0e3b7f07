"""No cache: every prompt is computed in full."""

from __future__ import annotations

from engine.cache.base import NO_MATCH, Evicted, Inserted, Lock, Match, Pages
from engine.cache.prefix_store import PrefixStore
from engine.cache.radix_node import NO_PAGES
from engine.policies.base import RequestView
from engine.request import Tokens


class NoCache(PrefixStore):
    """Matches nothing and keeps nothing; a lock holds the empty prefix."""

    def match(self, key: Tokens, namespace: str, limit: int) -> Match:
        return NO_MATCH

    def acquire(self, match: Match, request: RequestView, *, first: bool) -> Lock:
        root = self._root(request.namespace)
        self._hold(root)
        return Lock(root, 0)

    def insert(self, key: Tokens, pages: Pages, lock: Lock, request: RequestView) -> Inserted:
        """Takes none of the pages: they stay the caller's."""
        return Inserted(lock, 0, 0)

    def evict(self, n_tokens: int, request: RequestView | None) -> list[Evicted]:
        return []

    def reset(self) -> Pages:
        return NO_PAGES
