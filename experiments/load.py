"""The load generator: starts programs when they are due, steps the system, misses nothing.

A program that is due is started at the next step, however busy the system is: nothing is held back for a slow system.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from engine.clock import Clock

if TYPE_CHECKING:
    from lang.function import Program
    from lang.runner import ProgramRun
    from workloads.base import Job


class Runner(Protocol):
    """What the generator needs of `lang.Runner`."""

    def start(
        self,
        program: Program,
        kwargs: Mapping[str, Any],
        *,
        due: float,
        name: str,
        client: str,
        conversation: str,
        namespace: str,
        priority: int,
        sampling: Mapping[str, Any],
    ) -> ProgramRun: ...
    def step(self) -> Sequence[ProgramRun]: ...

    @property
    def idle_until(self) -> float | None:
        """When a program that sleeps goes on, if nothing can be done before; None otherwise."""


class Closed(NamedTuple):
    """A fixed number of programs in flight: the next is due when one ends."""

    parallel: int


class Open(NamedTuple):
    """Programs are due at given times, whether or not earlier ones have ended."""

    due: tuple[float, ...]
    """Seconds after the start, one a job, ascending."""


Load = Closed | Open


class JobError(ValueError):
    """A job can't be started: its program doesn't take what it gives."""


class Played(NamedTuple):
    """What came of a load. Times are seconds on the clock."""

    started_at: float
    finished_at: float
    runs: tuple[ProgramRun, ...]
    """In the order of their start."""


def poisson(n: int, rate: float, seed: int | Sequence[int]) -> Open:
    """`n` arrivals of a Poisson process of `rate` programs a second; the first after one gap, like the rest."""
    return Open(tuple(np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n)).tolist()))


def as_timed(jobs: Sequence[Job]) -> tuple[list[Job], Open]:
    """The jobs in the order of their own times, and those times. Raises ValueError when a job has none."""
    if any(job.at is None for job in jobs):
        raise ValueError("not every program of this workload has a time of its own: give parallel=N or rate=R")
    ordered = sorted(jobs, key=lambda job: (job.stage, job.at or 0.0))
    return ordered, Open(tuple(float(job.at or 0.0) for job in ordered))


def play(
    jobs: Sequence[Job],
    load: Load,
    runner: Runner,
    clock: Clock,
    on_step: Callable[[int], None] = lambda _: None,
) -> Played:
    """Runs all jobs under the load, `on_step(programs done)` after every step. Failed ones are among the results."""
    if isinstance(load, Open) and len(load.due) != len(jobs):
        raise ValueError(f"{len(load.due)} due times for {len(jobs)} programs: give one for each")
    waiting = deque(sorted(jobs, key=lambda job: job.stage))
    runs: list[ProgramRun] = []
    done = 0
    started = clock.now()
    stage, stage_began = waiting[0].stage if waiting else 0, started

    def due() -> float:
        """Of the next job. One that waited for an earlier stage is due when that ended."""
        return max(started + load.due[len(runs)], stage_began) if isinstance(load, Open) else clock.now()

    def may_start() -> bool:
        if not waiting or waiting[0].stage != stage:
            return False
        return len(runs) - done < load.parallel if isinstance(load, Closed) else due() <= clock.now()

    while done < len(jobs):
        if len(runs) == done:  # nothing is under way
            if waiting[0].stage != stage:
                stage, stage_began = waiting[0].stage, clock.now()
            clock.sleep_until(due())
        while may_start():
            when, job = due(), waiting.popleft()
            runs.append(_start(runner, job, when))
        if (
            (awake := runner.idle_until) is not None
            and isinstance(load, Open)
            and waiting
            and waiting[0].stage == stage
        ):
            clock.sleep_until(min(awake, due()))
            if due() <= clock.now():
                continue
        done += len(runner.step())
        on_step(done)
    return Played(started, clock.now(), tuple(runs))


def _start(runner: Runner, job: Job, due: float) -> ProgramRun:
    """Raises JobError when the program doesn't take the job's arguments; what fails inside it is in the run."""
    try:
        return runner.start(
            job.program,
            job.args,
            due=due,
            name=job.name,
            client=job.client,
            conversation=job.conversation,
            namespace=job.namespace,
            priority=job.priority,
            sampling={} if job.outputs == "free" else {"outputs": job.outputs},
        )
    except TypeError as error:
        raise JobError(f"job {job.name!r} of the workload can't be started: {error}") from error
