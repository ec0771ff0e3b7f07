"""What the radix tree promises, case by case."""

from __future__ import annotations

import random

import numpy as np
import pytest

from engine.cache import make_cache
from engine.cache.base import Lock
from engine.cache.radix_tree import RadixTree
from engine.policies.base import Ctx, EvictionPolicy, Node, RequestView
from engine.policies.eviction.lru import LRU
from engine.request import Request, SamplingParams


def tree_of(policy: EvictionPolicy | None = None, page: int = 1) -> RadixTree:
    return RadixTree(
        page_size=page,
        capacity_tokens=1000,
        eviction=policy or LRU(),
        rng=random.Random(0),
        cost=lambda start, n: start + 2.0 * n,
    )


def request_of(text: str, namespace: str = "") -> Request:
    return Request(id=1, key=np.array([ord(c) for c in text], np.int64), params=SamplingParams(), namespace=namespace)


def put(tree: RadixTree, text: str, namespace: str = "", first: bool = True) -> Lock:
    """Caches a prompt; returns the hold on it."""
    request = request_of(text, namespace)
    match = tree.match(request.key, namespace, len(text))
    lock = tree.acquire(match, request, first=first)
    pages = np.arange(1000 * tree.seq, 1000 * tree.seq + len(text), dtype=np.int32)
    return tree.insert(request.key, pages, lock, request).lock


def cached(tree: RadixTree, text: str, namespace: str = "") -> int:
    return tree.match(request_of(text).key, namespace, len(text)).n_tokens


def shape(tree: RadixTree) -> dict[str, int]:
    """Text of each node -> its locks."""
    return {"".join(chr(t) for t in np.frombuffer(node.key, np.int64)): node.locks for node in tree.nodes()}


def test_a_prompt_that_leaves_a_node_splits_it() -> None:
    tree = tree_of()
    first = put(tree, "abcdef")
    second = put(tree, "abcxyz")
    assert shape(tree) == {"abc": 2, "def": 1, "xyz": 1}
    assert first.node.start == second.node.start == 3
    tree.unlock(first)
    assert shape(tree) == {"abc": 1, "def": 0, "xyz": 1}
    tree.unlock(second)
    assert shape(tree) == {"abc": 0, "def": 0, "xyz": 0}


def test_a_hold_keeps_its_end_when_its_node_is_split() -> None:
    tree = tree_of()
    held = put(tree, "abcdef")
    tree.unlock(put(tree, "abcx"))
    tree.evict(100, None)
    assert shape(tree) == {"abc": 1, "def": 1}
    assert [node.start for node in tree.path(held)] == [0, 3]


def test_locked_prefix_survives_any_eviction() -> None:
    tree = tree_of()
    held = put(tree, "system prompt")
    tree.unlock(put(tree, "system prompt, a question"))
    assert tree.evictable_tokens == len(", a question")
    gone = tree.evict(10_000, None)
    assert sum(one.n_tokens for one in gone) == len(", a question")
    assert cached(tree, "system prompt, a question") == len("system prompt")
    tree.unlock(held)
    assert tree.evictable_tokens == tree.cached_tokens == len("system prompt")


def test_a_leaf_is_shortened_from_its_end_by_what_is_needed() -> None:
    tree = tree_of(page=2)
    tree.unlock(put(tree, "abcdefgh"))
    (gone,) = tree.evict(3, None)
    assert (gone.start, gone.n_tokens, len(gone.pages)) == (4, 4, 2)
    assert cached(tree, "abcdefgh") == 4


def test_lru_evicts_what_was_used_longest_ago() -> None:
    tree = tree_of()
    for text in ("aaa", "bbb", "ccc"):
        tree.unlock(put(tree, text))
    tree.unlock(put(tree, "aaa"))
    tree.evict(3, None)
    assert [cached(tree, t) for t in ("aaa", "bbb", "ccc")] == [3, 0, 3]


def test_a_second_admission_of_a_preempted_request_counts_as_no_use() -> None:
    tree = tree_of()
    for text in ("aaa", "bbb"):
        tree.unlock(put(tree, text))
    tree.unlock(put(tree, "aaa", first=False))
    tree.evict(3, None)
    assert [cached(tree, t) for t in ("aaa", "bbb")] == [0, 3]


def test_namespaces_never_share() -> None:
    tree = tree_of()
    tree.unlock(put(tree, "secret", "alice"))
    assert cached(tree, "secret", "alice") == 6
    assert cached(tree, "secret", "bob") == 0
    assert cached(tree, "secret") == 0


def test_an_emptied_namespace_leaves_nothing_behind() -> None:
    tree = tree_of()
    for i in range(50):
        tree.unlock(put(tree, "text", f"tenant {i}"))
    tree.evict(200, None)
    assert not tree._roots


def test_negative_token_ids_of_images_match_like_any_other() -> None:
    tree = tree_of()
    image = Request(id=1, key=np.array([1, -(2**62), -7, 2], np.int64), params=SamplingParams())
    lock = tree.acquire(tree.match(image.key, "", 4), image, first=True)
    tree.unlock(tree.insert(image.key, np.arange(4, dtype=np.int32), lock, image).lock)
    assert tree.match(image.key, "", 4).n_tokens == 4
    assert tree.match(np.array([1, -(2**62), -8, 2], np.int64), "", 4).n_tokens == 2


def test_pages_of_the_caller_may_change_after_the_insert() -> None:
    tree = tree_of()
    request = request_of("abc")
    pages = np.array([7, 8, 9], np.int32)
    tree.insert(request.key, pages, tree.acquire(tree.match(request.key, "", 3), request, first=True), request)
    pages[:] = 0
    assert tree.match(request.key, "", 3).pages().tolist() == [7, 8, 9]


def test_a_stale_match_is_refused() -> None:
    tree = tree_of()
    tree.unlock(put(tree, "abcdef"))
    match = tree.match(request_of("abcdef").key, "", 6)
    tree.evict(4, None)
    with pytest.raises(ValueError, match="stale"):
        tree.acquire(match, request_of("abcdef"), first=True)


def test_a_lock_given_back_twice_is_refused() -> None:
    tree = tree_of()
    lock = put(tree, "abc")
    tree.unlock(lock)
    with pytest.raises(ValueError, match="isn't locked"):
        tree.unlock(lock)
    tree.check()


def test_keys_of_another_type_are_refused() -> None:
    tree = tree_of()
    tree.unlock(put(tree, "abc"))
    with pytest.raises(TypeError, match="int64"):
        tree.match(np.array([97, 98], np.int32), "", 2)  # type: ignore[arg-type]


def test_too_few_pages_are_refused() -> None:
    tree = tree_of()
    request = request_of("abc")
    lock = tree.acquire(tree.match(request.key, "", 3), request, first=True)
    with pytest.raises(ValueError, match="pages for 2 tokens"):
        tree.insert(request.key, np.arange(2, dtype=np.int32), lock, request)


class Heard(LRU):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_insert(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        node.slot = [node.n_tokens]
        self.said.append(f"insert {node.start}+{node.n_tokens}")

    def on_hit(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        self.said.append(f"hit {node.start}+{node.n_tokens}")

    def on_split(self, upper: Node, lower: Node, ctx: Ctx) -> None:
        assert upper.slot == lower.slot
        assert upper.slot is not lower.slot
        assert lower.parent is upper
        self.said.append(f"split {upper.n_tokens}|{lower.n_tokens}")

    def on_evict(self, node: Node, page_keys: object, ctx: Ctx) -> None:
        self.said.append(f"evict {len(page_keys)} left {node.n_tokens}")  # type: ignore[arg-type]

    def on_done(self, request: RequestView, path: object, ctx: Ctx) -> None:
        self.said.append(f"done {[node.n_tokens for node in path]}")  # type: ignore[attr-defined]


def test_a_policy_hears_of_everything_in_order() -> None:
    policy = Heard()
    tree = tree_of(policy)
    tree.unlock(put(tree, "abcdef"))
    lock = put(tree, "abcx")
    tree.done(request_of("abcx"), lock)
    tree.unlock(lock)
    tree.unlock(put(tree, "abcxyz"))
    tree.evict(4, None)
    assert policy.said == [
        *("insert 0+6", "split 3|3", "hit 0+3", "insert 3+1", "done [3, 1]"),
        *("hit 0+3", "hit 3+1", "insert 4+2", "evict 3 left 0", "evict 1 left 1"),
    ]


def test_the_moment_a_policy_sees() -> None:
    tree = tree_of()
    tree.now = 4.5
    tree.unlock(put(tree, "abc"))
    ctx = tree.ctx
    assert (ctx.now, ctx.seq, ctx.page_size, ctx.capacity_tokens, ctx.cached_tokens) == (4.5, tree.seq, 1, 1000, 3)
    assert ctx.cost(10, 3) == 16.0
    assert ctx.future is None
    assert [node.used_at for node in ctx.leaves()] == [4.5]


def test_an_unknown_cache_is_answered_with_the_closest() -> None:
    with pytest.raises(ValueError, match=r"unknown cache 'radx'; did you mean 'radix'\? available: flat, none, radix"):
        make_cache("radx", page_size=1, capacity_tokens=1, eviction=LRU(), rng=random.Random(0), cost=lambda _, n: n)
