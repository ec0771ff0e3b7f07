"""First come, first served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView

arrival = attrgetter("arrival", "id")


class FCFS(SchedulePolicy):
    """In the order in which requests were due. Who was preempted keeps its place."""

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        return iter(sorted(waiting, key=arrival))
