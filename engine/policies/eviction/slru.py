"""Segmented LRU."""

from __future__ import annotations

from engine.policies.base import Ctx, EvictionPolicy, Node


class SLRU(EvictionPolicy):
    """Leaves hit at least `protected_hits` times go only when no other is left; LRU within both segments.

    Karedla, Love, Wherry 1994, without a bound on the protected segment.
    """

    def __init__(self, protected_hits: int = 2) -> None:
        if protected_hits < 1:
            raise ValueError(f"protected_hits={protected_hits} must be 1 or more")
        self.protected_hits = protected_hits

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (node.hits >= self.protected_hits, node.used_seq)
