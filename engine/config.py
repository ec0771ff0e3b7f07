"""What a researcher may set of an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class ConfigError(ValueError):
    """The configuration makes no sense. The message says what was given, what is allowed and what to do."""


WEIGHTS = ("int8", "fp8")
_CHOICES = {"device": ("auto", "cpu", "cuda"), "kv_dtype": ("auto", "int8", "fp8_e4m3")}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything that decides what an engine does, but for the hardware."""

    model: str = "tiny"
    """A named shape (seeded random weights), a Hugging Face folder, or a hub name."""
    dtype: str = "float32"
    """float32 | bfloat16 | float16 (GPU only) | float64 (CPU only)"""
    weights: str | None = None
    """int8 | fp8 (GPU only): projections quantised while they are loaded; None: as dtype."""
    device: str = "auto"
    """auto (a GPU where there is one) | cpu | cuda"""
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
    kv_dtype: str = "auto"
    """auto (the model's) | int8 | fp8_e4m3: how the KV pool keeps K and V; the last two on a GPU only."""
    memory_fraction: float = 0.9
    """Of the GPU's memory, for weights, the KV pool and what a step needs. The CPU's pool doesn't ask."""
    cuda_graphs: bool = True
    """Decode steps on a GPU are replayed from graphs."""
    overlap: bool | None = None
    """A step is scheduled while the one before it runs; None: on a GPU."""
    deterministic: bool = False
    """On a GPU: the same bits for a request whatever the batch, the chunking or the state of the cache."""
    grammar_backend: str = "llguidance"
    """llguidance | xgrammar | fsm: who says what a grammar allows."""
    grammar_limits: Mapping[str, Any] = field(default_factory=dict)
    """What one grammar may take: fields of `engine.constraints.base.GrammarLimits`."""
    jump_forward: bool = True
    """Tokens that a grammar forces are appended at once; False: decoded one by one (an ablation: the same tokens)."""
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
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"engine.{name}={getattr(self, name)!r} is not allowed: choose one of {', '.join(allowed)}"
                )
        if self.weights is not None and self.weights not in WEIGHTS:
            raise ConfigError(
                f"model.weights={self.weights!r} is not allowed: choose one of {', '.join(WEIGHTS)}, or null for "
                "weights in model.dtype"
            )
        if not 0 < self.memory_fraction <= 1:
            raise ConfigError(
                f"engine.memory_fraction={self.memory_fraction} is not allowed: it must be above 0 and at most 1"
            )
        if self.pool_tokens is not None and self.pool_tokens < self.page_size:
            raise ConfigError(
                f"engine.pool_tokens={self.pool_tokens} holds no page of {self.page_size} tokens: raise it"
            )
