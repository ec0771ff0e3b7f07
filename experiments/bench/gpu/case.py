"""What a stage of the benchmark is: cases, each measured on its own, so that one failing takes no other with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from engine.kernels.roofline import Ceilings
from experiments.bench.gpu.figure import Figure

T = TypeVar("T")


class Failed(RuntimeError):
    """Something was measured or tested and found wrong. No traceback is worth printing: the message says it all."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where and how the stages run."""

    device: torch.device
    """cuda; in a rehearsal cpu, with the kernels under Triton's interpreter."""
    rehearsal: bool
    """Tiny shapes: every line runs, no figure means anything."""
    folder: Path
    """Where results go."""
    measured: Ceilings | None
    """Of this GPU in this run; None in the stage that measures them."""
    tune: bool = False
    deadline: float = float("inf")
    """Of the stage, on the wall clock (time.time()); no case is begun after it."""

    @property
    def ceilings(self) -> Ceilings:
        """Of this GPU, as measured in this run. Raises Failed where that failed: there is no floor then."""
        if self.measured is None:
            raise Failed("this GPU's ceilings weren't measured, so there is nothing to hold a figure against")
        return self.measured

    def pick(self, real: T, rehearsed: T) -> T:
        """A size for the device, or its tiny twin for the rehearsal."""
        return rehearsed if self.rehearsal else real


class Case(NamedTuple):
    name: str
    run: Callable[[], Iterable[Figure]]
    """Measures; raises what goes wrong."""
