"""Longest cached prefix first (arXiv 2312.07104, section 3 and theorem 3.1)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView


class CacheAware(SchedulePolicy):
    """Whoever has most of its prompt cached goes first; of equals the one due first."""

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        heap = [(-view.match(r), r.arrival, r.id, r) for r in waiting]
        heapq.heapify(heap)
        while heap:
            yield heapq.heappop(heap)[3]
