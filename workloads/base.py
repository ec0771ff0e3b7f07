"""What a workload is: data, jobs (programs with their arguments) and perhaps a score."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from lang.function import Program
from lang.runner import ProgramRun

Outputs = Literal["free", "recorded", "fixed"]
"""free: the model's own. recorded: those of a recorded run, decoded token by token, and its choices. fixed: the model's
own, as long as the recorded ones (or as `max_tokens`), and the recorded choices."""


class DataSource(NamedTuple):
    """Where a workload's data came from."""

    origin: Literal["files", "hub", "sample"]
    path: str = ""
    """The files, or the hub's name of the data set."""
    sha256: str = ""
    """Of what was read (`workloads.data.digest`)."""
    note: str = ""
    """What the reader of a result should know; for a sample, why it isn't the real data."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of one program."""

    program: Program
    args: Mapping[str, Any]
    name: str
    """Unique in the workload: it leads from a `ProgramRun` back to its job."""
    at: float | None = None
    """Seconds after the start at which it is due; None: the load generator decides."""
    stage: int = 0
    """A job starts only when all jobs of earlier stages have finished."""
    client: str = ""
    conversation: str = ""
    namespace: str = ""
    priority: int = 0
    outputs: Outputs = "free"
    """Where the outputs of its calls come from (`lang.sampling.Sampling.outputs`)."""


class Score(NamedTuple):
    """How good the answers were."""

    name: str
    value: float
    n: int
    """Answers scored."""


def bytes_in_fours(text: str) -> int:
    """Roughly a text's tokens: one for every four bytes."""
    return math.ceil(len(text.encode()) / 4)


class Workload(ABC):
    """Made with its configuration as keyword arguments; then `load`, `warmup` and `jobs`, and `score` at the end."""

    data: DataSource = DataSource("sample", note="made by the workload itself")
    count_tokens: Callable[[str], int] = staticmethod(bytes_in_fours)
    """Tokens of a text. The runner puts the model's own tokenizer here before it calls `load`."""

    asked_outputs: str = "auto"
    """What the configuration says: auto or one of `served_outputs`. A workload with a parameter `outputs` sets it when
    it is made."""
    outputs: Outputs = "free"
    """Where this run's outputs come from; reports say it. Set by `choose_outputs`."""
    served_outputs: Sequence[Outputs] = ("free",)
    """What the workload can do, the best stand-in for a trained model first."""

    def choose_outputs(self, asked: str, random_weights: bool) -> None:
        """Settles `outputs`. `auto`: free with a trained model; with random weights, whose outputs would lead programs
        nowhere, the first of `served_outputs`. Called before `load`. Raises ValueError for what isn't served."""
        if asked == "auto":
            self.outputs = self.served_outputs[0] if random_weights else "free"
        elif asked in self.served_outputs:
            self.outputs = next(one for one in self.served_outputs if one == asked)
        else:
            allowed = ", ".join(("auto", *self.served_outputs))
            raise ValueError(f"workload.outputs={asked!r} isn't served by this workload; allowed: {allowed}")

    def load(self) -> None:  # noqa: B027 - a workload that makes its own prompts has nothing to load
        """Reads the data and says in `self.data` where it came from. Raises `workloads.data.DataError`."""

    @abstractmethod
    def jobs(self) -> list[Job]:
        """What is measured, in the order in which it is offered. The same list each time."""

    def warmup(self) -> list[Job]:
        """What runs before the measurement. Its prompts must share no prefix with those of `jobs` (or a namespace)."""
        return []

    def score(self, finished: Sequence[ProgramRun]) -> Score | None:
        """How good the answers of runs of `jobs` were; None when there is nothing to score."""
        return None
