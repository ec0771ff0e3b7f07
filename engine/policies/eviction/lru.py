"""Least recently used."""

from __future__ import annotations

from engine.policies.base import Ctx, EvictionPolicy, Node


class LRU(EvictionPolicy):
    """The leaf whose last use is longest ago goes first. A request uses its whole path at once."""

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (node.used_seq,)
