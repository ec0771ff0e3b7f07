"""What a prefix cache answers and owns. Pure data structures over page indices: no tensors here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engine.policies.base import Ctx, Hint, Node, RequestView
from engine.policies.guard import Guard
from engine.request import Tokens

if TYPE_CHECKING:
    from engine.cache.radix_tree import RadixNode

Pages = npt.NDArray[np.int32]


class Match(NamedTuple):
    """The longest cached prefix. Making one changes nothing: no split, no recency."""

    n_tokens: int
    """A multiple of the page size."""
    path: tuple[RadixNode, ...]
    """Root's child first; the last one perhaps only in part."""
    n_last: int
    """Tokens used of the last node of `path`."""

    def pages(self) -> Pages:
        """The pages of the matched tokens, in order: int32 [n_tokens // page_size]. To be asked before `acquire`."""
        if not self.path:
            return np.empty(0, np.int32)
        parts = [node.pages for node in self.path[:-1]]
        last = self.path[-1]
        parts.append(last.pages[: self.n_last // last.page_size])
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


NO_MATCH = Match(0, (), 0)


class Lock(NamedTuple):
    """A hold on a prefix: none of it can be evicted until `unlock`."""

    node: RadixNode
    n_tokens: int
    """Tokens from the root to the end of `node` that are held."""


class Inserted(NamedTuple):
    lock: Lock
    """The old hold, moved to the end of what is now cached."""
    n_new: int
    """Tokens that weren't there: their pages belong to the cache now. A multiple of the page size."""
    n_duplicate: int
    """Tokens that were there already, in other pages: the caller keeps its own pages for these."""


class Evicted(NamedTuple):
    """What one victim lost."""

    node: int
    """Its id."""
    namespace: str
    start: int
    """Tokens before the first token that went."""
    n_tokens: int
    pages: Pages
    """Free now; they belong to the caller again."""
    idle: float
    """Seconds since it was last used."""


class Cache(Protocol):
    """Maps token prefixes to pages. The pool of free pages is somebody else's: eviction returns pages to its caller."""

    page_size: int
    capacity_tokens: int
    whole_entries: bool
    """Prompts are to be inserted whole, not chunk by chunk."""
    cached_tokens: int
    """Tokens in the tree (locked or not)."""
    evictable_tokens: int
    """Tokens of nodes with no lock at or under them: all of it can be evicted, leaf by leaf."""
    evicted_tokens: int
    """So far."""
    refetched_tokens: int
    """Tokens inserted again after they had been evicted, so far."""
    guard: Guard
    """Before the eviction policy."""
    now: float
    """Logical time, seconds; the scheduler sets it once a step. Policies see it as `ctx.now`."""

    @property
    def ctx(self) -> Ctx: ...

    def match(self, key: Tokens, namespace: str, limit: int) -> Match:
        """Longest cached prefix of `key[:limit]`, in whole pages. No side effects of any kind."""

    def acquire(self, match: Match, request: RequestView, *, first: bool) -> Lock:
        """Locks the matched prefix (splitting its last node where the match ends inside it).

        `first`: the request's first admission; then recency, hits and `on_hit` follow, root to leaf.
        Must be called with a match made since the last change of the cache.
        """

    def insert(self, key: Tokens, pages: Pages, lock: Lock, request: RequestView) -> Inserted:
        """Adds `key[lock.n_tokens :]` (cut to whole pages) under the lock. `pages` are those of the whole key.

        Stops the hold at the end of the inserted part. Duplicates are found by comparing tokens, not hashes.
        """

    def unlock(self, lock: Lock) -> None: ...

    def miss(self, request: RequestView, key: Tokens, match: Match) -> None:
        """Tells the eviction policy of the pages that weren't found, before any page is evicted for the request."""

    def done(self, request: RequestView, lock: Lock) -> None:
        """Tells the eviction policy that the request ended; `lock` is still held."""

    def hint(self, hint: Hint) -> None: ...

    def evict(self, n_tokens: int, request: RequestView | None) -> list[Evicted]:
        """Evicts until at least `n_tokens` tokens went or nothing may go. Says what went, in order."""

    def path(self, lock: Lock) -> Sequence[Node]:
        """Nodes from the root's child to the lock's."""

    def reset(self) -> Pages:
        """Forgets everything that isn't locked; returns its pages."""

    def check(self) -> None:
        """Raises AssertionError when an invariant doesn't hold. O(size); for tests."""
