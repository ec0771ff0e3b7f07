"""The free pages of the KV pool."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from engine.cache.base import Pages


class PagePoolError(RuntimeError):
    """A page was freed twice, or one that isn't the pool's. The pool is unchanged."""


class PagePool:
    """A stack of page indices 0..n_pages-1. Pages freed last are given out first (they are warm)."""

    def __init__(self, n_pages: int) -> None:
        if n_pages < 1:
            raise ValueError(f"n_pages={n_pages}: a pool needs at least 1 page")
        self.n_pages = n_pages
        self._stack = np.arange(n_pages - 1, -1, -1, dtype=np.int32)
        self._n_free = n_pages
        self._is_free = np.ones(n_pages, np.bool_)
        self._order = np.arange(n_pages, dtype=np.int32)
        self._scratch = np.empty(n_pages, np.int32)

    @property
    def n_free(self) -> int:
        return self._n_free

    @property
    def n_used(self) -> int:
        return self.n_pages - self._n_free

    def alloc(self, n: int) -> Pages | None:
        """Takes `n` pages: int32 [n]; None (and nothing is taken) when fewer are free."""
        if n < 0:
            raise ValueError(f"alloc({n}): the number of pages can't be negative")
        if n > self._n_free:
            return None
        left = self._n_free - n
        pages = self._stack[left : self._n_free][::-1].copy()
        self._n_free = left
        self._is_free[pages] = False
        return pages

    def free(self, pages: Pages) -> None:
        """Gives `pages` back. Raises PagePoolError for a page that is free, is given twice, or isn't the pool's."""
        n = len(pages)
        if n == 0:
            return
        if int(pages.min()) < 0 or int(pages.max()) >= self.n_pages:
            bad = [int(p) for p in pages if not 0 <= p < self.n_pages]
            raise PagePoolError(
                f"free: pages {bad[:8]} aren't in this pool of {self.n_pages} pages (0..{self.n_pages - 1})"
            )
        if self._is_free[pages].any():
            raise PagePoolError(f"free: pages {pages[self._is_free[pages]][:8].tolist()} are free already")
        order = self._order[:n]
        self._scratch[pages] = order  # of a page given twice only the last survives
        if (self._scratch[pages] != order).any():
            values, counts = np.unique(pages, return_counts=True)
            raise PagePoolError(f"free: pages {values[counts > 1][:8].tolist()} are given more than once")
        self._stack[self._n_free : self._n_free + n] = pages[::-1]
        self._n_free += n
        self._is_free[pages] = True

    def check(self, used: Iterable[Pages]) -> None:
        """Raises AssertionError unless the free pages and all of `used` are each page of the pool once. O(n_pages)."""
        seen = np.zeros(self.n_pages, np.int64)
        np.add.at(seen, self._stack[: self._n_free], 1)
        for pages in used:
            np.add.at(seen, pages, 1)
        assert (seen > 0).all(), f"pages lost: {np.flatnonzero(seen == 0)[:8].tolist()}"
        assert (seen < 2).all(), f"pages with two owners: {np.flatnonzero(seen > 1)[:8].tolist()}"
        assert int(self._is_free.sum()) == self._n_free, "the free marks and the stack of free pages differ"
