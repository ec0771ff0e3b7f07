"""Reads the engine's counters after each step and keeps its `Metrics`."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from engine.executor.base import Batch
from engine.metrics import Metrics, StepSample
from engine.scheduler import Scheduler


class StepTimes(NamedTuple):
    """Readings of the stopwatch, seconds: the step's begin, after scheduling, after the forward pass, at the end."""

    begun: float
    launched: float
    collected: float
    ended: float


class Counters(NamedTuple):
    """Counts since the engine was made."""

    evicted_tokens: int
    refetched_tokens: int
    recomputed_tokens: int
    preemptions: int
    images_encoded: int
    images_found: int


class Eyes(Protocol):
    """What encodes images (`engine.executor.eyes`)."""

    encoded: int
    found: int


class Meter:
    def __init__(self, scheduler: Scheduler, *, keep_steps: bool = True, eyes: Eyes | None = None) -> None:
        """eyes: of the executor, where its model has some."""
        self._eyes = eyes
        self._keep_steps = keep_steps
        self._scheduler = scheduler
        self._memory = scheduler.memory
        self._cache_s = 0.0
        self.reset()

    def reset(self) -> None:
        """Starts counting afresh."""
        self.metrics = Metrics()
        self._before = self._counters()

    def begin(self) -> None:
        """A step begins."""
        self._cache_s = self._memory.seconds

    def stepped(self, batch: Batch, n_running: int, now: float, times: StepTimes) -> None:
        """A step ended at `now`, on the engine's clock. `n_running`: before its finished requests left."""
        metrics, cache = self.metrics, self._memory.cache
        since = Counters(*(a - b for a, b in zip(self._counters(), self._before)))
        for name, count in since._asdict().items():
            setattr(metrics, name, count)
        metrics.peak_running = max(metrics.peak_running, n_running)
        if not self._keep_steps:
            return
        n_decode = sum(row.start >= row.request.prompt_tokens for row in batch.rows)
        cache_s = self._memory.seconds - self._cache_s
        metrics.steps.append(
            StepSample(
                step=batch.step,
                time=now,
                running=n_running,
                waiting=len(self._scheduler.waiting),
                free_tokens=self._memory.pool.n_free * self._memory.page_size,
                cached_tokens=cache.cached_tokens,
                evictable_tokens=cache.evictable_tokens,
                n_prefill=sum(row.n_new for row in batch.rows) - n_decode,
                n_decode=n_decode,
                n_cached=self._scheduler.n_cached_in_pass,
                schedule_s=max(0.0, times.launched - times.begun - cache_s),
                cache_s=cache_s,
                forward_s=times.collected - times.launched,
                other_s=max(0.0, times.ended - times.collected),
            )
        )

    def _counters(self) -> Counters:
        cache, scheduler = self._memory.cache, self._scheduler
        return Counters(
            cache.evicted_tokens,
            cache.refetched_tokens,
            scheduler.recomputed_tokens,
            scheduler.preemptions,
            self._eyes.encoded if self._eyes is not None else 0,
            self._eyes.found if self._eyes is not None else 0,
        )
