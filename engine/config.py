"""What a researcher may set of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """The configuration makes no sense. The message says what was given, what is allowed and what to do."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything that decides what an engine does, but for the hardware."""

    model: str = "tiny"
    """A named shape (seeded random weights), a Hugging Face folder, or a hub name."""
    dtype: str = "float32"
    model_seed: int = 0
    tokenizer: str | None = None
    """Path or hub name; None: the model's own, or the built-in one for named shapes."""
    max_context: int | None = None
    """Longest prompt + output, tokens; None: the model's own."""
    page_size: int = 1
    """Tokens of a page of the KV pool."""
    pool_tokens: int | None = None
    """Size of the KV pool, tokens; None: from the memory that is free."""
    max_batch_tokens: int = 4096
    max_running: int = 256
    cache: str = "radix"
    """radix | flat | none"""
    hints: bool = True
    """False: hints of programs are not passed on (an ablation)."""
    eviction: str = "lru"
    eviction_args: Mapping[str, Any] = field(default_factory=dict)
    retention: str = "keep_all"
    retention_args: Mapping[str, Any] = field(default_factory=dict)
    schedule: str = "cache_aware"
    schedule_args: Mapping[str, Any] = field(default_factory=dict)
    admission: str = "always"
    admission_args: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("page_size", "max_batch_tokens", "max_running"):
            if getattr(self, name) < 1:
                raise ConfigError(f"engine.{name}={getattr(self, name)} is not allowed: it must be 1 or more")
        if self.max_running > self.max_batch_tokens:
            raise ConfigError(
                f"engine.max_running={self.max_running} is above engine.max_batch_tokens={self.max_batch_tokens}: "
                "every running request needs one token of the step's budget; lower the first or raise the second"
            )
        if self.pool_tokens is not None and self.pool_tokens < self.page_size:
            raise ConfigError(
                f"engine.pool_tokens={self.pool_tokens} holds no page of {self.page_size} tokens: raise it"
            )
