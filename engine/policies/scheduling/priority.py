"""Priority, then arrival."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView


class Priority(SchedulePolicy):
    """Larger `priority` goes first; of equals the one due first."""

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        return iter(sorted(waiting, key=lambda r: (-r.priority, r.arrival, r.id)))

    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], need: int, view: ScheduleView
    ) -> Iterator[RequestView]:
        """Under memory pressure the smallest priority gives way first, of equals the one admitted last."""
        if need > 0:
            places = sorted(range(len(running)), key=lambda i: (running[i].priority, -i))
            for i in places:
                yield running[i]
