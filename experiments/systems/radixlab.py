"""Our own engine, in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from engine import settings
from engine.clock import Clock
from engine.config import EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from engine.metrics import StepSample
from engine.policies.registry import make_policy
from experiments.config import RunConfig
from experiments.metrics import Totals
from experiments.systems.base import Live

if TYPE_CHECKING:
    from experiments.load import Runner

KINDS = {"eviction": "eviction", "retention": "retention", "scheduling": "schedule", "admission": "admission"}
"""Kind of policy: its setting."""


class RadixlabSystem:
    """`engine.Engine` behind the language's runner."""

    def __init__(self, engine: Engine, *, random_weights: bool) -> None:
        self.engine = engine
        self.random_weights = random_weights
        self._live = Live()
        self._counted = 0

    @property
    def clock(self) -> Clock:
        return self.engine.clock

    @property
    def device(self) -> str:
        return self.engine.executor.device

    @property
    def pool_tokens(self) -> int | None:
        return self.engine.capacity_tokens

    @property
    def takes_images(self) -> bool:
        return self.engine.image_tokens > 0

    @property
    def count_tokens(self) -> Callable[[str], int] | None:
        tokenizer = self.engine.tokenizer
        return None if tokenizer is None else lambda text: len(tokenizer.encode(text))

    def runner(self) -> Runner:
        from lang import Runner
        from lang.backends.engine import EngineBackend

        return Runner(EngineBackend(self.engine))

    def reset(self) -> None:
        self.engine.flush_cache()
        self.engine.reset_metrics()
        self._live, self._counted = Live(), 0

    def totals(self) -> Totals:
        metrics = self.engine.metrics
        seconds = {name: sum(getattr(s, name) for s in metrics.steps) for name in _SECONDS}
        return Totals(
            evicted_tokens=metrics.evicted_tokens,
            refetched_tokens=metrics.refetched_tokens,
            recomputed_tokens=metrics.recomputed_tokens,
            preemptions=metrics.preemptions,
            peak_running=metrics.peak_running,
            images_encoded=metrics.images_encoded,
            images_found=metrics.images_found,
            **seconds,
        )

    def steps(self) -> pd.DataFrame:
        return pd.DataFrame(self.engine.metrics.steps, columns=list(StepSample._fields))

    def live(self) -> Live:
        steps = self.engine.metrics.steps
        for step in steps[self._counted :]:
            cached, computed, output = self._live
            self._live = Live(cached + step.n_cached, computed + step.n_prefill, output + step.n_decode)
        self._counted = len(steps)
        return self._live

    def write_log(self, path: Path) -> None:
        self.engine.log.write(path)

    def resolved(self) -> dict[str, Any]:
        return dataclasses.asdict(self.engine.config)


_SECONDS = ("schedule_s", "cache_s", "forward_s", "other_s")


def engine_config(config: RunConfig) -> EngineConfig:
    """The engine's configuration of a run. Raises ConfigError for unknown settings and values that make no sense."""
    return settings.engine_config(model=config.model, policy=config.policy, engine=config.engine, seed=config.seed)


def make(config: RunConfig) -> RadixlabSystem:
    """Loads the model and makes the engine. Raises what `make_engine` raises, and ConfigError."""
    wanted = engine_config(config)
    for kind, part in KINDS.items():  # before the model is loaded, which may take minutes
        make_policy(kind, getattr(wanted, part), dict(getattr(wanted, f"{part}_args")))
    return RadixlabSystem(make_engine(wanted), random_weights=not config.model.get("path"))
