"""Longest cached prefix first (arXiv 2312.07104, section 3 and theorem 3.1)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView
from engine.policies.scheduling.prompt_order import PromptOrder


class CacheAware(SchedulePolicy):
    """Whoever has most of its prompt cached goes first; of equals the one due first.

    An admitted prompt is cached from that moment on, so waiting requests that begin like it move up at once: those
    with the same uncached prefix run next to each other.

    Matches are remembered from pass to pass. One that is too long is found out at the head of the queue, where each is
    looked up again. One can be too short only for what the policy wasn't told of, so `refresh` requests are looked up
    again at each pass, in turn: with up to `refresh` of them waiting the order is exact.
    """

    def __init__(self, refresh: int = 64) -> None:
        if refresh < 1:
            raise ValueError(f"refresh={refresh} must be 1 or more requests a pass")
        self.refresh = refresh
        self._prompts = PromptOrder()
        self._matched: dict[int, tuple[int, int]] = {}
        """Of each waiting request: matched tokens, number of its live entry in the heap."""
        self._heap: list[tuple[int, float, int, int, RequestView]] = []
        """(-matched, arrival, id, number, request); stale entries stay until they surface."""
        self._aside: list[RequestView] = []
        """Yielded in this pass and not admitted: they have no live entry."""
        self._number = 0
        self._turn = 0

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        self._meet(waiting, view)
        while (request := self._head(view)) is not None:
            yield request
            if request.id in self._matched:  # it wasn't admitted: out of the way until the next pass
                self._aside.append(request)
                self._set(request, self._matched[request.id][0], queue=False)

    def on_scheduled(self, request: RequestView, n_prefill: int, n_cached: int, view: ScheduleView) -> None:
        """Those that begin like the admitted prompt have more of it cached now."""
        if request.id not in self._matched:
            return
        self._forget(request)
        cached = view.match(request)
        if cached + view.page_size >= request.prompt_tokens:  # all that a match of its own may count
            cached = request.prompt_tokens
        if cached <= n_cached:
            return
        checked = False
        for other, common in self._prompts.neighbours(request, n_cached):
            gained = min(common, cached, other.prompt_tokens - 1) // view.page_size * view.page_size
            if gained <= self._matched[other.id][0]:
                continue
            if not checked:  # a cache that shares whole entries only gives the neighbours nothing
                checked = True
                found = view.match(other)
                if found < gained:
                    self._set(other, found)
                    return
            self._set(other, gained)

    def on_done(self, request: RequestView, view: ScheduleView) -> None:
        if request.id in self._matched:
            self._forget(request)

    def _meet(self, waiting: Sequence[RequestView], view: ScheduleView) -> None:
        """Takes note of who came and who left without a word, and looks some of the others up again."""
        for request in self._aside:
            if request.id in self._matched:
                self._set(request, self._matched[request.id][0])
        self._aside.clear()
        for request in waiting:
            if request.id not in self._matched:
                self._prompts.add(request)
                self._set(request, view.match(request))
        if len(self._matched) > len(waiting):
            here = {request.id for request in waiting}
            for request in [r for r in self._prompts if r.id not in here]:
                self._forget(request)
        for i in range(min(self.refresh, len(waiting))):
            request = waiting[(self._turn + i) % len(waiting)]
            matched = view.match(request)
            if matched != self._matched[request.id][0]:
                self._set(request, matched)
        self._turn = (self._turn + self.refresh) % max(1, len(waiting))
        if len(self._heap) > 4 * len(self._matched) + 64:
            self._heap = [entry for entry in self._heap if self._live(entry)]
            heapq.heapify(self._heap)

    def _head(self, view: ScheduleView) -> RequestView | None:
        """The request with the longest match, looked up now."""
        while self._heap:
            entry = self._heap[0]
            if not self._live(entry):
                heapq.heappop(self._heap)
                continue
            request = entry[4]
            matched = view.match(request)
            if matched >= -entry[0]:
                return request
            heapq.heappop(self._heap)
            self._set(request, matched)
        return None

    def _live(self, entry: tuple[int, float, int, int, RequestView]) -> bool:
        known = self._matched.get(entry[2])
        return known is not None and known[1] == entry[3]

    def _set(self, request: RequestView, matched: int, *, queue: bool = True) -> None:
        self._number += 1
        self._matched[request.id] = matched, self._number
        if queue:
            heapq.heappush(self._heap, (-matched, request.arrival, request.id, self._number, request))

    def _forget(self, request: RequestView) -> None:
        del self._matched[request.id]
        self._prompts.remove(request)
