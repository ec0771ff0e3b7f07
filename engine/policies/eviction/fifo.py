"""First in, first out."""

from __future__ import annotations

from engine.policies.base import Ctx, EvictionPolicy, Node


class FIFO(EvictionPolicy):
    """The leaf inserted first goes first, however often it was used."""

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (node.inserted_seq,)
