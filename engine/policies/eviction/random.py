"""Random leaves."""

from __future__ import annotations

from collections.abc import Iterator

from engine.policies.base import Ctx, EvictionPolicy, Node, RequestView


class Random(EvictionPolicy):
    """Every evictable leaf is as likely as any other, from the engine's seeded generator. Constant time a choice."""

    order = "own"

    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        leaves = ctx.leaves()
        while len(leaves):
            yield leaves[ctx.rng.randrange(len(leaves))]
