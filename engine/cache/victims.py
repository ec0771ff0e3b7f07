"""Which leaf goes next: one queue for each `order` an eviction policy may declare."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any, Protocol

from engine.cache.hooks import Hooks
from engine.cache.radix_node import RadixNode
from engine.policies.base import Ctx, RequestView, broken
from engine.policies.names import unknown_name


class EvictableLeaves:
    """The leaves that may go now. Constant time to add, remove, index; the order depends on past events only."""

    def __init__(self) -> None:
        self._nodes: list[RadixNode] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[RadixNode]:
        return iter(self._nodes)

    def __getitem__(self, i: int) -> RadixNode:
        return self._nodes[i]

    def __contains__(self, node: object) -> bool:
        i = node.leaf_index if isinstance(node, RadixNode) else -1
        return 0 <= i < len(self._nodes) and self._nodes[i] is node

    def add(self, node: RadixNode) -> None:
        node.leaf_index = len(self._nodes)
        self._nodes.append(node)

    def remove(self, node: RadixNode) -> None:
        last = self._nodes.pop()
        if last is not node:
            self._nodes[node.leaf_index] = last
            last.leaf_index = node.leaf_index
        node.leaf_index = -1


class VictimQueue(Protocol):
    """Yields victims. After each yield the cache has taken tokens off the node's end, or all of it."""

    def offer(self, node: RadixNode) -> None:
        """`node` became an evictable leaf."""

    def victims(self, need: int, request: RequestView | None) -> Iterator[RadixNode]: ...


class LazyHeap:
    """order = "lazy": keys never decrease, so a stale key is a lower bound and only the top is ever asked again.

    A node enters when it first becomes an evictable leaf, and may stay while it is locked or inner.
    """

    def __init__(self, hooks: Hooks, ctx: Ctx) -> None:
        self._hooks, self._ctx = hooks, ctx
        self._heap: list[tuple[Any, int, int, int, RadixNode]] = []
        self._new: list[RadixNode] = []

    def offer(self, node: RadixNode) -> None:
        if not node.queued:
            node.queued = True
            self._new.append(node)

    def _entry(self, node: RadixNode) -> tuple[Any, int, int, int, RadixNode]:
        return (self._hooks.key(node, self._ctx), node.used_seq, -node.start, node.id, node)

    def _absorb(self) -> None:
        new, self._new = self._new, []
        heap = self._heap
        for node in new:
            if node.leaf_index < 0:
                node.queued = False
        entries = [self._entry(node) for node in new if node.queued]
        if len(entries) * 4 > len(heap):
            heap.extend(entries)
            heapq.heapify(heap)
        else:
            for entry in entries:
                heapq.heappush(heap, entry)

    def victims(self, need: int, request: RequestView | None) -> Iterator[RadixNode]:
        while True:
            try:
                node = self._top()
            except TypeError as error:
                raise broken(self._hooks.policy, "key", f"gave keys that can't be compared: {error}") from error
            if node is None:
                return
            yield node

    def _top(self) -> RadixNode | None:
        if self._new:
            self._absorb()
        heap, repairs = self._heap, 0
        while heap:
            entry = heap[0]
            node = entry[4]
            if node.leaf_index < 0:
                heapq.heappop(heap)
                node.queued = False
                continue
            current = self._entry(node)
            if current[:4] <= entry[:4]:
                return node
            heapq.heapreplace(heap, current)
            repairs += 1
            if repairs > len(heap):
                why = "gives the same node another key each time it is asked; it must have no side effects"
                raise broken(self._hooks.policy, "key", why)
        return None


class Rekey:
    """order = "rekey": the policy scores all candidates at each choice."""

    def __init__(self, hooks: Hooks, ctx: Ctx, leaves: EvictableLeaves) -> None:
        self._hooks, self._ctx, self._leaves = hooks, ctx, leaves

    def offer(self, node: RadixNode) -> None:
        pass

    def victims(self, need: int, request: RequestView | None) -> Iterator[RadixNode]:
        policy = self._hooks.policy
        while len(self._leaves):
            nodes = list(self._leaves)
            keys = list(self._hooks.keys(nodes, self._ctx))
            if len(keys) != len(nodes):
                raise broken(policy, "keys", f"gave {len(keys)} keys for {len(nodes)} nodes")
            try:
                yield min((key, n.used_seq, -n.start, n.id, n) for key, n in zip(keys, nodes))[4]
            except TypeError as error:
                raise broken(policy, "keys", f"gave keys that can't be compared: {error}") from error


class Own:
    """order = "own": the policy keeps its own queue and yields from it."""

    def __init__(self, hooks: Hooks, ctx: Ctx, leaves: EvictableLeaves) -> None:
        self._hooks, self._ctx, self._leaves = hooks, ctx, leaves

    def offer(self, node: RadixNode) -> None:
        pass

    def victims(self, need: int, request: RequestView | None) -> Iterator[RadixNode]:
        policy = self._hooks.policy
        for node in self._hooks.victims(need, request, self._ctx):
            if node not in self._leaves:
                raise broken(policy, "victims", f"yielded {self._why_not(node)}; only ctx.leaves() may go")
            yield node
        if len(self._leaves):
            raise broken(policy, "victims", f"ended although {len(self._leaves)} leaves could still be evicted")

    @staticmethod
    def _why_not(node: object) -> str:
        if not isinstance(node, RadixNode):
            return f"{node!r}, which isn't a node of the tree"
        if node.n_tokens == 0:
            return f"{node!r}, which is a root or was evicted already"
        if node.n_children:
            return f"{node!r}, an inner node ({node.n_children} children)"
        if node.locks:
            return f"{node!r}, a locked node"
        return f"{node!r}, a node of another tree"


def victim_queue(hooks: Hooks, ctx: Ctx, leaves: EvictableLeaves) -> VictimQueue:
    """The queue for the policy's `order`. Raises PolicyError for an order that isn't one."""
    order = hooks.policy.order
    if order == "lazy":
        return LazyHeap(hooks, ctx)
    if order == "rekey":
        return Rekey(hooks, ctx, leaves)
    if order == "own":
        return Own(hooks, ctx, leaves)
    raise broken(hooks.policy, "order", unknown_name("order", str(order), ("lazy", "rekey", "own")))
