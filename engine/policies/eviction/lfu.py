"""Least frequently used."""

from __future__ import annotations

from engine.policies.base import Ctx, EvictionPolicy, Node


class LFU(EvictionPolicy):
    """The leaf hit least often goes first; of equals the one used longest ago."""

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (node.hits,)
