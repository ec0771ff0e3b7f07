"""Which pages were evicted: a bounded memory of their keys."""

from __future__ import annotations

from collections.abc import Iterable


class GhostSet:
    """Keys of evicted pages. Remembers at least the last `limit` of them and at most twice as many."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._young: set[int] = set()
        self._old: set[int] = set()

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, keys: Iterable[int]) -> None:
        self._young.update(keys)
        if len(self._young) >= self.limit:
            self._old, self._young = self._young, set()

    def take(self, keys: Iterable[int]) -> int:
        """Forgets those of `keys` it knows (they are back) and says how many they were."""
        found = self._young.intersection(keys) if self._young else set()
        if self._old:
            found |= self._old.intersection(keys)
        if found:
            self._young -= found
            self._old -= found
        return len(found)
