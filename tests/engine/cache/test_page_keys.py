"""Chain hashes of pages: the same for the same prefix, whatever happened to the node."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.cache.page_keys import prompt_page_keys
from engine.cache.radix_tree import RadixTree
from engine.policies.base import Ctx, EvictionPolicy, Node, RequestView
from engine.policies.eviction.lru import LRU
from engine.request import Request, SamplingParams

TOKENS = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20)


def keys_of(tokens: list[int], namespace: str = "", page: int = 1) -> list[int]:
    return list(prompt_page_keys(np.array(tokens, np.int64).tobytes(), namespace, page))


@given(TOKENS, st.integers(1, 4))
def test_a_page_key_says_the_page_and_all_before_it(tokens: list[int], page: int) -> None:
    keys = keys_of(tokens, page=page)
    assert len(keys) == len(tokens) // page
    assert keys == keys_of(tokens)[page - 1 :: page]
    for i in range(len(keys)):
        assert keys_of(tokens[: (i + 1) * page], page=page) == keys[: i + 1]


@given(TOKENS, st.integers(0, 19), st.integers(-(2**63), 2**63 - 1))
def test_another_token_changes_its_key_and_all_later_ones(tokens: list[int], at: int, token: int) -> None:
    at %= len(tokens)
    if tokens[at] == token:
        return
    other = keys_of([*tokens[:at], token, *tokens[at + 1 :]])
    keys = keys_of(tokens)
    assert other[:at] == keys[:at]
    assert all(a != b for a, b in zip(other[at:], keys[at:]))


def test_order_and_namespace_matter() -> None:
    assert keys_of([1, 2])[-1] != keys_of([2, 1])[-1]
    assert keys_of([0, 0]) != keys_of([0, 0], "tenant")
    assert len(set(keys_of([0] * 5000))) == 5000


def test_keys_are_the_same_in_every_process() -> None:
    code = "from engine.cache.page_keys import prompt_page_keys as k; print(list(k(bytes(range(64)), 'tenant', 2)))"
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert runs == {f"{list(prompt_page_keys(bytes(range(64)), 'tenant', 2))}\n"}


class Seen(LRU):
    """Notes the page keys it hears of."""

    def __init__(self) -> None:
        self.evicted: list[int] = []
        self.missed: list[int] = []

    def on_miss(self, request: RequestView, page_keys: object, ctx: Ctx) -> None:
        self.missed = list(page_keys)  # type: ignore[call-overload]

    def on_evict(self, node: Node, page_keys: object, ctx: Ctx) -> None:
        self.evicted.extend(page_keys)  # type: ignore[arg-type]


def tree_of(policy: EvictionPolicy, page: int) -> RadixTree:
    return RadixTree(
        page_size=page, capacity_tokens=1 << 16, eviction=policy, rng=random.Random(0), cost=lambda _, n: float(n)
    )


def put(tree: RadixTree, tokens: list[int], namespace: str = "") -> None:
    key = np.array(tokens, np.int64)
    request = Request(id=1, key=key, params=SamplingParams(), namespace=namespace)
    match = tree.match(key, namespace, len(key))
    tree.miss(request, key, match)
    lock = tree.acquire(match, request, first=True)
    pages = np.arange(len(tokens) // tree.page_size, dtype=np.int32)
    tree.unlock(tree.insert(key, pages, lock, request).lock)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8),
    st.sampled_from([1, 2]),
    st.booleans(),
)
def test_node_keys_survive_splits_evictions_and_returns(prompts: list[list[int]], page: int, early: bool) -> None:
    policy = Seen()
    tree = tree_of(policy, page)
    for tokens in prompts:
        found = tree.match(np.array(tokens, np.int64), "", len(tokens)).n_tokens
        put(tree, tokens)
        assert policy.missed == keys_of(tokens, page=page)[found // page :]
        if early:  # keys computed before later splits are cut, not computed again
            assert all(len(node.page_keys) * page == node.n_tokens for node in tree.nodes())
    before = sorted(key for node in tree.nodes() for key in node.page_keys)
    assert before == sorted({key for tokens in prompts for key in keys_of(tokens, page=page)})
    tree.evict(3, None)
    tree.evict(tree.cached_tokens, None)
    assert sorted(policy.evicted) == before
    for tokens in prompts:
        put(tree, tokens)
    assert sorted(key for node in tree.nodes() for key in node.page_keys) == before
    assert tree.refetched_tokens == len(before) * page
