"""Programs that sleep: agents that wait for a tool, users who think."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass, field

from lang.program_run import Waiter


@dataclass(eq=False)
class Timer:
    """Finished once it has rung."""

    when: float
    """Seconds on the backend's clock."""
    waiters: list[Waiter] = field(default_factory=list)
    finished: bool = False


class Timers:
    """Those that haven't rung, earliest first; equal ones in the order set."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = itertools.count()

    @property
    def next(self) -> float | None:
        """When the earliest rings that somebody still waits for."""
        while self._heap and all(getattr(waiter, "finished", False) for waiter in self._heap[0][2].waiters):
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def set(self, when: float) -> Timer:
        timer = Timer(when)
        heapq.heappush(self._heap, (when, next(self._count), timer))
        return timer

    def due(self, now: float) -> list[Timer]:
        """Those whose time has come. They are finished after this."""
        rung = []
        while self._heap and self._heap[0][0] <= now:
            rung.append(heapq.heappop(self._heap)[2])
            rung[-1].finished = True
        return rung
