"""What a cache tells its eviction policy about the moment."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.cache.victims import EvictableLeaves
from engine.policies.base import CostModel, FutureIndex

if TYPE_CHECKING:
    from engine.cache.prefix_store import PrefixStore


class CacheCtx:
    """What a cache tells its policy (`engine.policies.base.Ctx`)."""

    def __init__(self, store: PrefixStore, rng: random.Random, cost: CostModel, future: FutureIndex | None) -> None:
        self._store, self.rng, self._cost, self.future = store, rng, cost, future
        self.page_size, self.capacity_tokens = store.page_size, store.capacity_tokens

    @property
    def now(self) -> float:
        return self._store.now

    @property
    def seq(self) -> int:
        return self._store.seq

    @property
    def cached_tokens(self) -> int:
        return self._store.cached_tokens

    def leaves(self) -> EvictableLeaves:
        return self._store.leaves

    def cost(self, start: int, n: int) -> float:
        return self._cost(start, n)
