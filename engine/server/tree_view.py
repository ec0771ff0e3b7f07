"""The cache's tree as `GET /cache` shows it: totals, what each namespace holds, its largest or latest nodes."""

from __future__ import annotations

import heapq
from operator import attrgetter
from typing import Any, Literal

import numpy as np

from engine.cache.prefix_store import PrefixStore
from engine.cache.radix_node import RadixNode
from engine.engine import Engine
from engine.tokenizer import decode_bytes

MOST_NODES = 50_000
"""Looked at for one answer: the engine waits meanwhile, some 20 ms."""
Order = Literal["largest", "recent", "hits"]
_PREVIEW_TOKENS = 16


def tree_view(engine: Engine, *, order: Order, limit: int, preview: bool, within: str = "") -> dict[str, Any]:
    """To be called between two steps. `preview`: the text that a node begins with.

    within: only namespaces that begin so are shown; totals are of the whole cache.
    """
    memory = engine.memory
    cache = memory.cache
    assert isinstance(cache, PrefixStore)
    namespaces: dict[str, dict[str, int]] = {}
    nodes: list[RadixNode] = []
    complete = True
    for seen, node in enumerate(cache.nodes()):
        if seen == MOST_NODES:
            complete = False
            break
        if not node.namespace.startswith(within):
            continue
        nodes.append(node)
        of_this = namespaces.setdefault(node.namespace, {"nodes": 0, "tokens": 0, "locked_tokens": 0})
        of_this["nodes"] += 1
        of_this["tokens"] += node.n_tokens
        of_this["locked_tokens"] += node.n_tokens if node.locks else 0
    rank = attrgetter({"largest": "n_tokens", "recent": "used_seq", "hits": "hits"}[order])
    now = engine.clock.now()
    return {
        "policy": {
            "eviction": engine.config.eviction,
            "schedule": engine.config.schedule,
            "cache": engine.config.cache,
        },
        "page_size": memory.page_size,
        "pool_tokens": engine.capacity_tokens,
        "free_tokens": memory.pool.n_free * memory.page_size,
        "cached_tokens": cache.cached_tokens,
        "evictable_tokens": cache.evictable_tokens,
        "evicted_tokens": cache.evicted_tokens,
        "refetched_tokens": cache.refetched_tokens,
        "complete": complete,
        "namespaces": namespaces,
        "nodes": [_node(engine, node, now, preview) for node in heapq.nlargest(limit, nodes, key=rank)],
    }


def _node(engine: Engine, node: RadixNode, now: float, preview: bool) -> dict[str, Any]:
    parent = node.parent
    shown: dict[str, Any] = {
        "id": node.id,
        "parent": parent.id if parent is not None and parent.parent is not None else None,
        "namespace": node.namespace,
        "start": node.start,
        "n_tokens": node.n_tokens,
        "n_children": node.n_children,
        "locks": node.locks,
        "hits": node.hits,
        "age_s": round(now - node.inserted_at, 6),
        "idle_s": round(now - node.used_at, 6),
    }
    if preview and engine.tokenizer is not None:
        shown["text"] = decode_bytes(engine.tokenizer, np.frombuffer(node.key, np.int64)[:_PREVIEW_TOKENS].tolist())
    return shown
