"""A third-party eviction policy: python run.py workload=mmlu policy.eviction=examples/cheap_first.py:CheapFirst"""

from __future__ import annotations

from collections.abc import Sequence

from engine.policies.base import Ctx, EvictionPolicy, Node


class CheapFirst(EvictionPolicy):
    """What is cheap to compute again goes first, weighed against how long ago it was used.

    The score of a leaf is `alpha` * its seconds per token + its last use, both scaled to 0..1 over the candidates: the
    scale depends on who else is there, so scores are made anew at each choice (`order = "rekey"`).
    """

    order = "rekey"

    def __init__(self, alpha: float = 1.0) -> None:
        if alpha < 0:
            raise ValueError(f"alpha={alpha} must be 0 or more")
        self.alpha = alpha

    def keys(self, nodes: Sequence[Node], ctx: Ctx) -> Sequence[float]:
        cost = [ctx.cost(node.start, node.n_tokens) / node.n_tokens for node in nodes]
        used = [float(node.used_seq) for node in nodes]
        return [self.alpha * c + u for c, u in zip(_scaled(cost), _scaled(used))]


def _scaled(values: Sequence[float]) -> list[float]:
    low, width = min(values), max(values) - min(values)
    return [(value - low) / width if width else 0.0 for value in values]
