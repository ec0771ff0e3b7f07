"""What the engine counts while it runs."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class StepSample(NamedTuple):
    """One step: the state after it, and where its time went (seconds)."""

    step: int
    time: float
    """When the step ended, on the engine's clock."""
    running: int
    waiting: int
    free_tokens: int
    cached_tokens: int
    evictable_tokens: int
    n_prefill: int
    """Prompt tokens computed."""
    n_decode: int
    """Output tokens fed back."""
    n_cached: int
    """Prompt tokens found in the cache at this step's admissions."""
    schedule_s: float
    cache_s: float
    forward_s: float
    other_s: float


class Histogram:
    """How many values were at most so much, by bucket; a value may count several times."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """bounds: the buckets' upper ends, rising; one more bucket takes what lies above."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0
        """Sum of the values."""

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times


@dataclass(slots=True)
class Metrics:
    """Totals since the last reset, and a sample a step."""

    steps: list[StepSample] = field(default_factory=list)
    evicted_tokens: int = 0
    refetched_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    peak_running: int = 0
    rejected: int = 0
    images_encoded: int = 0
    """Times that the model's eyes looked at one."""
    images_found: int = 0
    """Images that had to be computed and whose encoding was still there."""
