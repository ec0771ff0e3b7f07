"""Measuring: cells of a workload on a system, warmed up, repeated, interleaved."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from experiments.config import DEFAULT_PARALLEL, ConfigError, RunConfig
from experiments.load import Closed, Load, as_timed, play, poisson
from experiments.metrics import Measured, program_table, request_table

if TYPE_CHECKING:
    from experiments.systems.base import Live, System
    from workloads.base import Job, Workload


class Cell(NamedTuple):
    """A configuration with its workload loaded and its system ready."""

    config: RunConfig
    workload: Workload
    system: System

    @property
    def answers_count(self) -> bool:
        """The outputs are a trained model's own, so that they can be right or wrong."""
        return not self.system.random_weights and self.workload.outputs == "free"

    def load(self, repeat: int) -> tuple[Sequence[Job], Load]:
        """The jobs and when they are due. The same for every cell of the same seed, so that runs can be paired."""
        jobs, config = self.workload.jobs(), self.config
        if not jobs:
            raise ConfigError(f"workload {config.workload} has no programs to run: check its settings and data")
        if config.rate is not None:
            return jobs, poisson(len(jobs), config.rate, [config.seed, repeat])
        if config.parallel is None and all(job.at is not None for job in jobs):
            return as_timed(jobs)
        return jobs, Closed(config.parallel or DEFAULT_PARALLEL)


class Watcher(Protocol):
    """Is told how a run gets on."""

    def begin(self, title: str, programs: int) -> None: ...
    def step(self, done: int, live: Live, elapsed: float) -> None: ...
    def end(self) -> None: ...


class Round(NamedTuple):
    """One repeat of one cell."""

    cell: int
    repeat: int


def rounds(n_cells: int, repeats: Sequence[int], seed: int) -> Iterator[Round]:
    """Every cell's repeats, interleaved: each round runs all cells once, in a new random order."""
    rng = random.Random(f"{seed}/rounds")
    for repeat in range(max(repeats, default=0)):
        order = [cell for cell in range(n_cells) if repeat < repeats[cell]]
        rng.shuffle(order)
        yield from (Round(cell, repeat) for cell in order)


def warm_up(cell: Cell, watcher: Watcher) -> None:
    """Runs the workload's warm-up programs at the concurrency of the measurement; the cache is emptied afterwards."""
    jobs = list(cell.workload.warmup())
    if jobs:
        watcher.begin("warm-up", len(jobs))
        system = cell.system
        begun = system.clock.now()
        load = Closed(cell.config.parallel or DEFAULT_PARALLEL)
        play(
            jobs,
            load,
            system.runner(),
            system.clock,
            lambda n: watcher.step(n, system.live(), system.clock.now() - begun),
        )
        watcher.end()
    cell.system.reset()


def measure(cell: Cell, repeat: int, watcher: Watcher) -> Measured:
    """One repeat, from an empty cache."""
    system = cell.system
    jobs, load = cell.load(repeat)
    system.reset()
    gc.collect()
    watcher.begin(f"{cell.config.policy_label} {repeat + 1}/{cell.config.repeats}", len(jobs))
    begun = system.clock.now()
    played = play(
        jobs, load, system.runner(), system.clock, lambda n: watcher.step(n, system.live(), system.clock.now() - begun)
    )
    watcher.end()
    origin = played.started_at
    steps = system.steps()
    if len(steps):
        steps["time"] -= origin
    return Measured(
        repeat=repeat,
        duration_s=played.finished_at - origin,
        requests=request_table(played.runs, origin, repeat),
        programs=program_table(played.runs, origin, repeat),
        steps=steps,
        totals=system.totals(),
        score=cell.workload.score(played.runs) if cell.answers_count else None,
    )
