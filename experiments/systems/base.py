"""What the harness asks of a system under test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import pandas as pd

from engine.clock import Clock
from experiments.load import Runner
from experiments.metrics import Totals

if TYPE_CHECKING:
    from experiments.config import RunConfig


class Live(NamedTuple):
    """Tokens so far."""

    cached: int = 0
    """Of prompts, found in the cache."""
    computed: int = 0
    """Of prompts, computed."""
    output: int = 0


class System(Protocol):
    """A system with its model loaded. One run at a time."""

    @property
    def clock(self) -> Clock: ...
    @property
    def device(self) -> str: ...
    @property
    def pool_tokens(self) -> int | None:
        """Size of the KV pool, tokens; None where the system doesn't say."""

    @property
    def random_weights(self) -> bool:
        """The model's weights are random: its answers mean nothing."""

    @property
    def takes_images(self) -> bool:
        """Prompts may have pictures."""

    @property
    def count_tokens(self) -> Callable[[str], int] | None:
        """Tokens of a text by the model's own tokenizer; None where there is none."""

    def runner(self) -> Runner:
        """A fresh runner of programs."""

    def reset(self) -> None:
        """An empty cache and counters at zero."""

    def totals(self) -> Totals:
        """Counted since the last reset."""

    def steps(self) -> pd.DataFrame:
        """A row a step since the last reset; empty where the system shows none."""

    def live(self) -> Live:
        """Token counts since the last reset; cheap, asked after every step."""

    def write_log(self, path: Path) -> None:
        """The decision log; an empty table where the system keeps none."""

    def resolved(self) -> dict[str, Any]:
        """The system's settings in full, defaults included, for config.yaml."""


def make_system(config: RunConfig) -> System:
    """The system that the configuration names. Raises ConfigError for an unknown one."""
    from experiments.config import ConfigError, closest

    adapters = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "base")
    name = config.system["name"]
    if name not in adapters:
        raise ConfigError(f"unknown system {name!r}{closest(name, adapters) or ';'} available: {', '.join(adapters)}")
    from importlib import import_module

    return import_module(f"experiments.systems.{name}").make(config)
