"""An engine without a model on a virtual clock: every step takes what a cost model says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.clock import VirtualClock
from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import StepResult
from engine.tokenizer import builtin_tokenizer
from lang.backends.engine import EngineBackend
from tests.engine.conftest import HashExecutor

POLICIES = Path(__file__).parent / "listening_policies.py"
STEP_S = 0.01
TOKEN_S = 0.001


class CostedExecutor(HashExecutor):
    """A step takes STEP_S, and TOKEN_S for each of its tokens."""

    def __init__(self, clock: VirtualClock, **sizes: Any) -> None:
        super().__init__(**sizes)
        self._clock = clock

    def collect(self, pending: Any) -> StepResult:
        seconds = STEP_S + TOKEN_S * sum(row.n_new for row in pending[0].rows)
        self._clock.advance(seconds)
        return super().collect(pending)._replace(seconds=seconds)


def virtual_backend(*, pool_tokens: int = 4096, **config: Any) -> EngineBackend:
    tokenizer, clock = builtin_tokenizer(), VirtualClock()
    settings = EngineConfig(
        **{
            "eviction": f"{POLICIES}:KeepsPinned",
            "schedule": f"{POLICIES}:LargeFamiliesFirst",
            "max_batch_tokens": 64,
            "max_running": 8,
            **config,
        }
    )
    executor = CostedExecutor(
        clock, n_pages=pool_tokens // settings.page_size, page_size=settings.page_size, vocab_size=tokenizer.vocab_size
    )
    return EngineBackend(Engine(executor, tokenizer, settings, clock=clock))
