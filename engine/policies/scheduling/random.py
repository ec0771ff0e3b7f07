"""Random order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView

_id = attrgetter("id")


class Random(SchedulePolicy):
    """A fresh random order at every pass, from the engine's seeded generator."""

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        left = sorted(waiting, key=_id)
        while left:
            i = view.rng.randrange(len(left))
            left[i], left[-1] = left[-1], left[i]
            yield left.pop()
