"""How fast the radix tree is: operations a second at several tree sizes."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from engine.cache.base import Lock
from engine.cache.radix_tree import RadixTree
from engine.clock import stopwatch
from engine.policies.base import Ctx, EvictionPolicy, Node
from engine.policies.eviction.lru import LRU
from engine.policies.eviction.random import Random
from engine.request import Request, SamplingParams, Tokens


class RekeyLRU(EvictionPolicy):
    """LRU by scoring all candidates at each choice: what `order = "rekey"` costs."""

    order = "rekey"

    def keys(self, nodes: Sequence[Node], ctx: Ctx) -> Sequence[int]:
        return [node.used_seq for node in nodes]


ORDERS: dict[str, Callable[[], EvictionPolicy]] = {"lazy": LRU, "rekey": RekeyLRU, "own": Random}


class Speed(NamedTuple):
    """One measurement: the best of its repeats."""

    operation: str
    leaves: int
    """In the tree, about."""
    per_s: float
    tokens_per_s: float


def tree_for(policy: EvictionPolicy) -> RadixTree:
    return RadixTree(
        page_size=1, capacity_tokens=1 << 26, eviction=policy, rng=random.Random(0), cost=lambda _, n: float(n)
    )


def request_for(prompt: Tokens, number: int) -> Request:
    return Request(id=number, key=prompt, params=SamplingParams())


def _pages(prompts: Sequence[Tokens]) -> np.ndarray:
    return np.arange(max(len(prompt) for prompt in prompts), dtype=np.int32)


def filled(prompts: Sequence[Tokens], policy: EvictionPolicy) -> RadixTree:
    """A tree that holds the prompts, none locked."""
    tree, pages, request = tree_for(policy), _pages(prompts), request_for(prompts[0], 0)
    for prompt in prompts:
        match = tree.match(prompt, "", len(prompt) - 1)
        lock = tree.acquire(match, request, first=True)
        tree.unlock(tree.insert(prompt, pages, lock, request).lock)
    return tree


def match_speed(tree: RadixTree, prompts: Sequence[Tokens], leaves: int) -> Speed:
    begun = stopwatch()
    for prompt in prompts:
        tree.match(prompt, "", len(prompt) - 1)
    return _speed("match", leaves, len(prompts), sum(map(len, prompts)), stopwatch() - begun)


def pair_speed(prompts: Sequence[Tokens], before: Sequence[Tokens]) -> Speed:
    """match + insert of prompts into a tree that holds `before`. Holds on the root are made beforehand."""
    tree, pages, request = tree_for(LRU()), _pages(prompts), request_for(prompts[0], 0)
    if before:
        tree = filled(before, LRU())
    empty = tree.match(prompts[0], "", 0)
    locks: list[Lock] = [tree.acquire(empty, request, first=False) for _ in prompts]
    begun = stopwatch()
    for prompt, lock in zip(prompts, locks):
        tree.match(prompt, "", len(prompt) - 1)
        tree.insert(prompt, pages, lock, request)
    return _speed("match + insert", len(before), len(prompts), sum(map(len, prompts)), stopwatch() - begun)


def cycle_speed(prompts: Sequence[Tokens], before: Sequence[Tokens]) -> Speed:
    """What a request costs: match, acquire, insert, unlock."""
    tree, pages, request = tree_for(LRU()), _pages(prompts), request_for(prompts[0], 0)
    if before:
        tree = filled(before, LRU())
    begun = stopwatch()
    for prompt in prompts:
        match = tree.match(prompt, "", len(prompt) - 1)
        lock = tree.acquire(match, request, first=True)
        tree.unlock(tree.insert(prompt, pages, lock, request).lock)
    seconds = stopwatch() - begun
    return _speed("match + acquire + insert + unlock", len(before), len(prompts), sum(map(len, prompts)), seconds)


def evict_speed(order: str, prompts: Sequence[Tokens], n_calls: int, n_tokens: int = 100) -> Speed:
    """evict() calls of `n_tokens` tokens. The first call, which sets the queue up, isn't counted."""
    tree = filled(prompts, ORDERS[order]())
    tree.evict(1, None)
    gone = 0
    begun = stopwatch()
    for _ in range(n_calls):
        gone += sum(one.n_tokens for one in tree.evict(n_tokens, None))
    return _speed(f"evict {n_tokens} tokens, {order}", len(prompts), n_calls, gone, stopwatch() - begun)


def _speed(operation: str, leaves: int, n: int, n_tokens: int, seconds: float) -> Speed:
    return Speed(operation, leaves, n / seconds, n_tokens / seconds)


def best_of(repeats: int, measure: Callable[[], Speed]) -> Speed:
    """The fastest run: what others do on the machine only ever slows it down. Garbage collection stays on."""

    def one() -> Speed:
        gc.collect()
        return measure()

    return max((one() for _ in range(repeats)), key=lambda speed: speed.per_s)
