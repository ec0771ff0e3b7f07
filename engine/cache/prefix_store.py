"""What every tree of cached prefixes shares: locks, evictable leaves, eviction, what policies are told.

How prompts become nodes is the subclass's business (`RadixTree`, `FlatTable`).
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.cache.base import Evicted, Inserted, Lock, Match, Pages
from engine.cache.context import CacheCtx
from engine.cache.ghosts import GhostSet
from engine.cache.hooks import Hooks
from engine.cache.page_keys import prompt_page_keys
from engine.cache.radix_node import NO_PAGES, TOKEN_BYTES, RadixNode
from engine.cache.victims import EvictableLeaves, victim_queue
from engine.policies.base import CostModel, Ctx, EvictionPolicy, FutureIndex, Hint, Node, RequestView, broken
from engine.request import Tokens


class PrefixStore:
    """Nodes under one root a namespace. Implements `engine.cache.base.Cache` but for match, acquire and insert.

    `locks` of a node = holds on the node itself + its locked children, so a hold walks up only as far as the first
    ancestor that is locked already, and a node is free to go exactly when `locks == 0` and it has no children.
    """

    whole_entries = False

    def __init__(
        self,
        *,
        page_size: int,
        capacity_tokens: int,
        eviction: EvictionPolicy,
        rng: random.Random,
        cost: CostModel,
        future: FutureIndex | None = None,
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size={page_size}: a page holds at least 1 token")
        self.page_size, self.capacity_tokens = page_size, capacity_tokens
        self.cached_tokens = self.evictable_tokens = self.evicted_tokens = self.refetched_tokens = 0
        self.now = 0.0
        self.seq = 0
        self.leaves = EvictableLeaves()
        self.ctx: Ctx = CacheCtx(self, rng, cost, future)
        self._page_bytes = page_size * TOKEN_BYTES
        self._hooks = Hooks(eviction)
        self.guard = self._hooks.guard
        self._queue = victim_queue(self._hooks, self.ctx, self.leaves)
        self._roots: dict[str, RadixNode] = {}
        self._next_id = 0
        self._ghosts = GhostSet(min(max(4 * (capacity_tokens // page_size), 4096), 1 << 20))

    def match(self, key: Tokens, namespace: str, limit: int) -> Match:
        raise NotImplementedError

    def acquire(self, match: Match, request: RequestView, *, first: bool) -> Lock:
        raise NotImplementedError

    def insert(self, key: Tokens, pages: Pages, lock: Lock, request: RequestView) -> Inserted:
        raise NotImplementedError

    # nodes

    def _node(self, namespace: str, parent: RadixNode | None, key: bytes, pages: Pages, start: int) -> RadixNode:
        self._next_id += 1
        return RadixNode(self._next_id, namespace, parent, key, pages, self.page_size, start, self.seq, self.now)

    def _root(self, namespace: str) -> RadixNode:
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = self._node(namespace, None, b"", NO_PAGES, 0)
        return root

    def _edge(self, node: RadixNode) -> bytes:
        """The key of `node` among its parent's children."""
        raise NotImplementedError

    def _insert_under(
        self,
        parent: RadixNode,
        lock: Lock,
        key: bytes,
        pages: Pages,
        start: int,
        n_duplicate: int,
        request: RequestView,
    ) -> Inserted:
        """Adds the leaf, if there is anything to add, and moves the hold of `lock` to the end of what is cached."""
        if not key:
            if parent is not lock.node:
                self._hold(parent)
                self._release(lock.node)
            return Inserted(Lock(parent, start), 0, n_duplicate)
        n_new, page = len(key) // TOKEN_BYTES, self.page_size
        end = start + n_new
        if len(pages) * page < end:
            raise ValueError(f"insert: pages for {len(pages) * page} tokens were given, the key has {end}")
        own = pages[start // page : end // page].copy()
        self._next_id = number = self._next_id + 1
        leaf = RadixNode(number, parent.namespace, parent, key, own, page, start, self.seq, self.now)
        leaf.locks = 1
        parent.adopt(self._edge(leaf), leaf)
        self.cached_tokens += n_new
        if self.evicted_tokens:
            self.refetched_tokens += self._ghosts.take(leaf.page_keys) * self.page_size
        held = lock.node
        if parent is not held:  # else the hold on `parent` becomes the locked child's
            self._hold(parent)
            self._release(held)
        on_insert = self._hooks.on_insert
        if on_insert:
            on_insert(leaf, request, self.ctx)
        return Inserted(Lock(leaf, end), n_new, n_duplicate)

    # holds

    def _hold(self, node: RadixNode | None) -> None:
        while node is not None:
            node.locks += 1
            if node.locks > 1:
                return
            self.evictable_tokens -= node.n_tokens
            if node.leaf_index >= 0:
                self.leaves.remove(node)
            node = node.parent

    def _release(self, node: RadixNode | None) -> None:
        while node is not None:
            if node.locks < 1:
                raise ValueError(f"unlock: {node!r} isn't locked; a lock may be given back once")
            node.locks -= 1
            if node.locks:
                return
            self.evictable_tokens += node.n_tokens
            parent = node.parent
            if parent is None:
                self._drop_empty_root(node)
            elif not node.n_children:
                self.leaves.add(node)
                self._queue.offer(node)
            node = parent

    def _drop_empty_root(self, root: RadixNode) -> None:
        if not root.n_children and not root.locks:
            self._roots.pop(root.namespace, None)

    def unlock(self, lock: Lock) -> None:
        """Gives a hold back. Raises ValueError when nothing holds the node any more."""
        self._release(lock.node)

    def _touch(self, path: Sequence[RadixNode], request: RequestView) -> None:
        """Root to leaf: the path is used by a request's first admission."""
        self.seq += 1
        on_hit, ctx, seq, now = self._hooks.on_hit, self.ctx, self.seq, self.now
        for node in path:
            node.used_seq, node.used_at = seq, now
            node.hits += 1
        if on_hit:
            for node in path:
                on_hit(node, request, ctx)

    # policies

    def miss(self, request: RequestView, key: Tokens, match: Match) -> None:
        """Tells the policy of the pages of `key` that weren't found, when it asks for that."""
        if self._hooks.on_miss:
            keys = prompt_page_keys(key.tobytes(), request.namespace, self.page_size)
            self._hooks.on_miss(request, keys[match.n_tokens // self.page_size :], self.ctx)

    def done(self, request: RequestView, lock: Lock) -> None:
        if self._hooks.on_done:
            self._hooks.on_done(request, self.path(lock), self.ctx)

    def hint(self, hint: Hint) -> None:
        if self._hooks.on_hint:
            self._hooks.on_hint(hint, self.ctx)

    def path(self, lock: Lock) -> Sequence[Node]:
        nodes: list[Node] = []
        node: RadixNode | None = lock.node
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        nodes.reverse()
        return nodes

    # eviction

    def evict(self, n_tokens: int, request: RequestView | None) -> list[Evicted]:
        """Evicts until at least `n_tokens` tokens went or nothing may go.

        Raises PolicyError when the policy yields what may not go, asks for less than a token, or raises.
        """
        if n_tokens <= 0:
            return []
        self.seq += 1
        gone: list[Evicted] = []
        left = n_tokens
        for node in self._queue.victims(n_tokens, request):
            gone.append(self._shorten(node, self._amount(node, left)))
            left -= gone[-1].n_tokens
            if left <= 0:
                break
        self.evicted_tokens += n_tokens - left
        return gone

    def _amount(self, node: RadixNode, need: int) -> int:
        """Tokens to take off the node's end: what is needed or the policy's `take`, in whole pages."""
        n = need
        if self._hooks.take:
            n = self._hooks.take(node, need, self.ctx)
            if not isinstance(n, int) or n < 1:
                raise broken(self._hooks.policy, "take", f"gave {n!r}; it must be 1 or more tokens")
            n = min(n, need)
        return min(-(-n // self.page_size) * self.page_size, node.n_tokens)

    def _shorten(self, node: RadixNode, n_tokens: int, *, remember: bool = True) -> Evicted:
        """Takes `n_tokens` off the end of an evictable leaf; the whole of it when that is all."""
        keep = node.n_tokens - n_tokens
        keys: Any = None
        if remember or self._hooks.on_evict:
            keys = node.page_keys[keep // self.page_size :]
        if remember:
            self._ghosts.add(keys)
        if not keep:
            self._detach(node)
        pages = node.shorten(keep)
        self.cached_tokens -= n_tokens
        self.evictable_tokens -= n_tokens
        if self._hooks.on_evict:
            self._hooks.on_evict(node, keys, self.ctx)
        idle = self.now - node.used_at
        return Evicted(node.id, node.namespace, node.start + keep, n_tokens, pages, idle)

    def _detach(self, node: RadixNode) -> None:
        parent = node.parent
        assert parent is not None
        self.leaves.remove(node)
        parent.disown(self._edge(node))
        if parent.n_children or parent.locks:
            return
        if parent.parent is None:
            self._drop_empty_root(parent)
        else:
            self.leaves.add(parent)
            self._queue.offer(parent)

    def reset(self) -> Pages:
        """Forgets everything that isn't locked, which counts as no eviction; returns its pages."""
        self.seq += 1
        self._ghosts = GhostSet(self._ghosts.limit)
        pages = [NO_PAGES]
        while len(self.leaves):
            node = self.leaves[len(self.leaves) - 1]
            pages.append(self._shorten(node, node.n_tokens, remember=False).pages)
        return np.concatenate(pages)

    # invariants

    def nodes(self) -> Iterator[RadixNode]:
        """Every node but the roots, parents first."""
        stack = list(self._roots.values())
        while stack:
            node = stack.pop()
            if node.parent is not None:
                yield node
            stack.extend(node.children.values())

    def pages(self) -> Pages:
        """Every page the cache owns. O(size); for tests."""
        return np.concatenate([NO_PAGES, *(node.pages for node in self.nodes())])

    def check(self) -> None:
        """Raises AssertionError when an invariant doesn't hold. O(size); for tests."""
        cached = evictable = n_leaves = 0
        for root in self._roots.values():
            assert (root.parent, root.n_tokens, root.leaf_index) == (None, 0, -1), f"{root!r} isn't a root"
            assert root.n_children or root.locks, f"the root of namespace {root.namespace!r} should be gone"
            assert root.n_children == len(root.children)
            self._check_locks(root)
        for node in self.nodes():
            parent = node.parent
            assert parent is not None
            assert parent.children.get(self._edge(node)) is node, f"{node!r} isn't its parent's child"
            assert node.n_children == len(node.children)
            assert node.n_tokens > 0, f"{node!r} is empty"
            assert node.n_tokens % self.page_size == 0, f"{node!r} isn't whole pages"
            assert len(node.key) == node.n_tokens * TOKEN_BYTES, f"{node!r}: tokens and key differ"
            assert len(node.pages) * self.page_size == node.n_tokens, f"{node!r}: tokens and pages differ"
            assert node.start == parent.start + parent.n_tokens, f"{node!r} doesn't start where its parent ends"
            assert node.namespace == parent.namespace
            self._check_locks(node)
            free = node.locks == 0 and node.n_children == 0
            assert (node in self.leaves) == free, f"{node!r}: evictable is {free}, the list of leaves says otherwise"
            cached += node.n_tokens
            evictable += node.n_tokens if node.locks == 0 else 0
            n_leaves += free
        assert cached == self.cached_tokens, f"cached_tokens is {self.cached_tokens}, the nodes hold {cached}"
        assert evictable == self.evictable_tokens, f"evictable_tokens is {self.evictable_tokens}, counted {evictable}"
        assert n_leaves == len(self.leaves), "the list of leaves holds a node that isn't in the tree"
        pages = self.pages()
        assert len(np.unique(pages)) == len(pages), "a page belongs to two nodes"

    def _check_locks(self, node: RadixNode) -> None:
        locked = sum(child.locks > 0 for child in node.children.values())
        assert node.locks >= locked, f"{node!r} has {locked} locked children"

    def _copy_slot(self, slot: Any) -> Any:
        return copy.copy(slot) if slot is not None else None
