"""One edge of the prefix tree and the node at its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.cache.base import Pages
from engine.cache.page_keys import namespace_seed, page_keys, running_sums

TOKEN_BYTES = 8


class RadixNode:
    """Tokens `start .. start + n_tokens` of every prompt below it, and the pages that hold their KV.

    What policies may read is `engine.policies.base.Node`; the rest is the cache's. `n_tokens == 0`: a root, or gone.
    """

    __slots__ = (
        "_page_keys",
        "_sum_after",
        "_sum_before",
        "children",
        "hits",
        "id",
        "inserted_at",
        "inserted_seq",
        "key",
        "leaf_index",
        "locks",
        "n_children",
        "n_tokens",
        "namespace",
        "page_size",
        "pages",
        "parent",
        "queued",
        "slot",
        "start",
        "used_at",
        "used_seq",
    )

    def __init__(
        self,
        id: int,
        namespace: str,
        parent: RadixNode | None,
        key: bytes,
        pages: Pages,
        page_size: int,
        start: int,
        seq: int,
        now: float,
    ) -> None:
        self.id = id
        self.namespace = namespace
        self.parent = parent
        self.children = NO_CHILDREN
        self.n_children = 0
        self.key = key
        """Its tokens, int64 as bytes."""
        self.pages = pages
        self.page_size = page_size
        self.start = start
        self.n_tokens = len(key) // TOKEN_BYTES
        self.locks = 0
        self.inserted_seq = self.used_seq = seq
        self.inserted_at = self.used_at = now
        self.hits = 0
        self.slot: Any = None
        self.leaf_index = -1
        """Its place among the evictable leaves; -1: not one of them."""
        self.queued = False
        """Known to the victim queue."""
        self._sum_before: int | None = None
        self._sum_after: int | None = None
        self._page_keys: memoryview | None = None

    def __repr__(self) -> str:
        return f"<node {self.id}: tokens {self.start}..{self.start + self.n_tokens}, locks {self.locks}>"

    @property
    def page_keys(self) -> Sequence[int]:
        """Chain hash of each page, computed when first asked for."""
        return self._keys()

    def _keys(self) -> memoryview:
        if self._page_keys is None:
            sums = running_sums(self.key, self.start, self._sum())
            self._page_keys, self._sum_after = page_keys(sums, self.page_size), int(sums[-1])
        return self._page_keys

    def _sum(self) -> int:
        """The running sum before the node's first token. Asks up the path as far as it isn't known yet."""
        unknown: list[RadixNode] = []
        node = self
        while node._sum_before is None and node.parent is not None:
            unknown.append(node)
            node = node.parent
        if node._sum_before is None:
            node._sum_before = node._sum_after = namespace_seed(node.namespace)
        before = node._sum_before
        for below in reversed(unknown):
            if node._sum_after is None:
                node._sum_after = int(running_sums(node.key, node.start, before)[-1])
            below._sum_before = before = node._sum_after
            node = below
        return before

    def adopt(self, edge: bytes, child: RadixNode) -> None:
        """Makes `child` one of its children, or puts it in the place of the one found by the same `edge`."""
        if self.children is NO_CHILDREN:
            self.children = {}
        self.children[edge] = child
        self.n_children = len(self.children)

    def disown(self, edge: bytes) -> None:
        del self.children[edge]
        self.n_children = len(self.children)

    def shorten(self, n_tokens: int) -> Pages:
        """Keeps the first `n_tokens` tokens; returns the pages of the others."""
        n_pages = n_tokens // self.page_size
        gone = self.pages[n_pages:]
        self.key, self.pages, self.n_tokens = self.key[: n_tokens * TOKEN_BYTES], self.pages[:n_pages], n_tokens
        self._sum_after = None
        if self._page_keys is not None:
            self._page_keys = self._page_keys[:n_pages]
        return gone

    def halve(self, upper: RadixNode, n_tokens: int) -> None:
        """Gives the first `n_tokens` tokens to `upper`, which becomes the parent."""
        n_pages, at = n_tokens // self.page_size, n_tokens * TOKEN_BYTES
        upper.key, upper.pages, upper.n_tokens = self.key[:at], self.pages[:n_pages], n_tokens
        upper._sum_before = self._sum_before
        self.key, self.pages, self.n_tokens = self.key[at:], self.pages[n_pages:], self.n_tokens - n_tokens
        self.parent, self.start, self._sum_before = upper, self.start + n_tokens, None
        if self._page_keys is not None:
            upper._page_keys, self._page_keys = self._page_keys[:n_pages], self._page_keys[n_pages:]


NO_CHILDREN: dict[bytes, RadixNode] = {}
"""Shared by all leaves, never written: most nodes are leaves."""
NO_PAGES: Pages = np.empty(0, np.int32)
