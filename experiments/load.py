"""The load generator: starts programs when they are due, steps the system, misses nothing.

A program that is due is started at the next step, however busy the system is: nothing is held back for a slow system.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from engine.clock import Clock

if TYPE_CHECKING:
    from lang import ProgramRun
    from workloads.base import Job


class Runner(Protocol):
    """What the generator needs of `lang.Runner`."""

    @property
    def active(self) -> int: ...
    def start(self, fn: object, kwargs: dict, *, due: float, name: str, client: str) -> ProgramRun: ...
    def step(self) -> Sequence[ProgramRun]: ...


class Closed(NamedTuple):
    """A fixed number of programs in flight: the next is due when one ends."""

    parallel: int


class Open(NamedTuple):
    """Programs are due at given times, whether or not earlier ones have ended."""

    due: tuple[float, ...]
    """Seconds after the start, one a job, ascending."""


Load = Closed | Open


class Played(NamedTuple):
    """What came of a load. Times are seconds on the clock."""

    started_at: float
    finished_at: float
    runs: tuple[ProgramRun, ...]
    """In the order of the jobs."""


def poisson(n: int, rate: float, seed: int) -> Open:
    """`n` arrivals of a Poisson process of `rate` programs a second; the first after one gap, like the rest."""
    return Open(tuple(np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n)).tolist()))


def as_timed(jobs: Sequence[Job]) -> tuple[list[Job], Open]:
    """The jobs in the order of their own times, and those times. Raises ValueError when a job has none."""
    if any(job.at is None for job in jobs):
        raise ValueError("not every program of this workload has a time of its own: give parallel=N or rate=R")
    ordered = sorted(jobs, key=lambda job: job.at or 0.0)
    return ordered, Open(tuple(float(job.at or 0.0) for job in ordered))


def play(
    jobs: Sequence[Job],
    load: Load,
    runner: Runner,
    clock: Clock,
    on_step: Callable[[int], None] = lambda _: None,
) -> Played:
    """Runs all jobs under the load; `on_step(programs done)` after every step. Failed programs are among the results."""
    if isinstance(load, Open) and len(load.due) != len(jobs):
        raise ValueError(f"{len(load.due)} due times for {len(jobs)} programs: give one for each")
    waiting = deque(enumerate(jobs))
    runs: list[ProgramRun] = []
    done = 0
    started = clock.now()

    def start(due: float) -> None:
        _, job = waiting.popleft()
        runs.append(runner.start(job.program, dict(job.args), due=due, name=job.name, client=job.client))

    while waiting or runner.active:
        if isinstance(load, Closed):
            while waiting and runner.active < load.parallel:
                start(clock.now())
        else:
            if not runner.active and waiting:
                clock.sleep_until(started + load.due[waiting[0][0]])
            while waiting and started + load.due[waiting[0][0]] <= clock.now():
                start(started + load.due[waiting[0][0]])
        done += len(runner.step())
        on_step(done)
    return Played(started, clock.now(), tuple(runs))
