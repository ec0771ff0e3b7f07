"""The one source of time for engine, load generator and language. Nothing else reads the time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since the clock was made."""

    def now(self) -> float: ...

    def sleep_until(self, when: float) -> None:
        """Returns once `now() >= when`; at once when that is already so."""


class WallClock:
    """Real time."""

    def __init__(self) -> None:
        self._origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._origin

    def sleep_until(self, when: float) -> None:
        while (left := when - self.now()) > 0:
            time.sleep(left)


class VirtualClock:
    """Time that moves only when somebody sleeps on it or an executor advances it."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def sleep_until(self, when: float) -> None:
        self._now = max(self._now, when)

    def advance(self, seconds: float) -> None:
        """Moves time on by `seconds`. Raises ValueError when that is negative: time never goes back."""
        if seconds < 0:
            raise ValueError(f"time can't go back: advance({seconds})")
        self._now += seconds


def stopwatch() -> float:
    """Seconds, for measuring our own overhead only: it never enters a decision."""
    return time.perf_counter()
