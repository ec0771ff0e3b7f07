"""What the engine counts while it runs."""

from __future__ import annotations

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
