"""Policies that write down what they hear of programs, and decide by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engine.cache.page_keys import prompt_page_keys
from engine.policies.base import (
    Accept,
    AdmissionPolicy,
    EvictionPolicy,
    Hint,
    Node,
    Pin,
    RequestView,
    RetryAt,
    SchedulePolicy,
    Unpin,
)


class KeepsPinned(EvictionPolicy):
    """Least recently used, but pinned prefixes last."""

    order = "rekey"

    def __init__(self) -> None:
        self.heard: list[Hint] = []
        self.pinned: set[int] = set()

    def on_hint(self, hint: Hint, ctx: Any) -> None:
        self.heard.append(hint)
        if isinstance(hint, Pin | Unpin):
            key = np.asarray(hint.prefix, np.int64)
            keys = prompt_page_keys(key.tobytes(), hint.namespace, ctx.page_size)
            self.pinned = self.pinned | {*keys} if isinstance(hint, Pin) else self.pinned - {*keys}

    def keys(self, nodes: Sequence[Node], ctx: Any) -> Sequence[Any]:
        return [(not self.pinned.isdisjoint(node.page_keys), node.used_seq) for node in nodes]


class LargeFamiliesFirst(SchedulePolicy):
    """Who came with the most siblings goes first."""

    def __init__(self) -> None:
        self.heard: list[Hint] = []
        self.arrived: list[RequestView] = []

    def on_hint(self, hint: Hint, view: Any) -> None:
        self.heard.append(hint)

    def on_arrival(self, request: RequestView, view: Any) -> None:
        self.arrived.append(request)

    def order(self, waiting: Sequence[RequestView], view: Any) -> Iterator[RequestView]:
        return iter(sorted(waiting, key=lambda request: (-request.siblings, request.parent or 0, request.id)))


class InHalfSeconds(AdmissionPolicy):
    """Lets requests in at multiples of half a second only."""

    def admit(self, request: RequestView, view: Any) -> Accept | RetryAt:
        next_half = -(-view.now // 0.5) * 0.5
        return Accept() if view.now == next_half else RetryAt(next_half)
