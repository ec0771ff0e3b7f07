"""The prefix cache: which pages hold the KV of which tokens."""

from __future__ import annotations

import random

from engine.cache.base import Cache
from engine.cache.flat import FlatTable
from engine.cache.none import NoCache
from engine.cache.prefix_store import PrefixStore
from engine.cache.radix_tree import RadixTree
from engine.policies.base import CostModel, EvictionPolicy, FutureIndex
from engine.policies.names import unknown_name

CACHES: dict[str, type[PrefixStore]] = {"radix": RadixTree, "flat": FlatTable, "none": NoCache}


def make_cache(
    kind: str,
    *,
    page_size: int,
    capacity_tokens: int,
    eviction: EvictionPolicy,
    rng: random.Random,
    cost: CostModel,
    future: FutureIndex | None = None,
) -> Cache:
    """A cache of the kind named: "radix", "flat" or "none". Raises ValueError for another name.

    `cost(start, n)` is what a policy hears of recomputing tokens, seconds; `future` is for oracle runs.
    """
    if kind not in CACHES:
        raise ValueError(unknown_name("cache", kind, CACHES))
    return CACHES[kind](
        page_size=page_size, capacity_tokens=capacity_tokens, eviction=eviction, rng=rng, cost=cost, future=future
    )
