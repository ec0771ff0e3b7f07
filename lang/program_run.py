"""One run of a program, and what it can wait for."""

from __future__ import annotations

from asyncio import Task
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Union

from lang.backends.base import Call, Tags
from lang.output import Output, Trunk
from lang.sampling import Sampling
from lang.speculation import LongAnswer, SpeculationCount

if TYPE_CHECKING:
    from lang.calls import Group
    from lang.function import Program
    from lang.state import ProgramState


class Sleeper(Protocol):
    """Who waits on an event loop."""

    def wake(self) -> None: ...


Waiter = Union["ProgramRun", Sleeper]


class Awaited(Protocol):
    """What a program can wait for."""

    waiters: list[Waiter]

    @property
    def finished(self) -> bool: ...


@dataclass(eq=False, kw_only=True)
class ProgramRun:
    """One run of one program."""

    name: str
    program: Program
    args: Mapping[str, Any]
    tags: Tags
    sampling: Sampling
    """What its calls take for everything they don't set."""
    started_at: float
    """Seconds, as all times here."""
    finished_at: float | None = None
    status: Literal["running", "done", "failed", "cancelled"] = "running"
    state: ProgramState = field(init=False)
    error: BaseException | None = None
    where: str = ""
    """The program's own line that raised `error`: path:line."""
    calls: list[Call] = field(default_factory=list)
    """In the order sent, those of the programs it ran included."""
    parent: ProgramRun | None = None
    children: list[ProgramRun] = field(default_factory=list)
    """The programs it ran."""
    parallel: bool = True
    """False: each call is waited for where it is written."""
    kin: Trunk | None = None
    """Its first call is made together with those of others."""
    outputs: list[Output] = field(default_factory=list)
    """Of all its streams, in the order written."""
    failed_at: str = ""
    """Of a graph: path:line of the operation that failed."""
    saved_calls: int = 0
    """Gens of its own that needed none, by speculation."""
    long_answers: list[LongAnswer] = field(default_factory=list)
    """What its own over-long calls said."""
    waiters: list[Waiter] = field(default_factory=list)
    group: Group | None = None
    """Where its calls are held back for a while."""
    progress: Progress | None = None
    """Its next step, if somebody waits for it."""
    _waits_for: Awaited | None = None
    _greenlet: Any = None
    """Of a program that isn't async."""
    _coroutine: Coroutine[Any, Any, None] | None = None
    """Of an async one, where a plain Runner drives it."""
    _task: Task[None] | None = None
    """Of an async one on an event loop."""

    @property
    def due(self) -> float:
        """When it should have started; when it did, if nobody said."""
        return self.started_at if self.tags.due is None else self.tags.due

    @property
    def num_api_spec_tokens(self) -> int:
        """0: no speculation."""
        return self.program.num_api_spec_tokens

    @property
    def speculation(self) -> SpeculationCount:
        """What it has brought so far, in the programs it ran too."""
        inner = [child.speculation for child in self.children]
        wasted = [*(answer.wasted_tokens for answer in self.long_answers), *(count.wasted_tokens for count in inner)]
        return SpeculationCount(
            self.saved_calls + sum(count.saved_calls for count in inner),
            len(self.long_answers) + sum(count.long_calls for count in inner),
            None if None in wasted else sum(tokens for tokens in wasted if tokens is not None),
        )

    @property
    def client(self) -> str:
        return self.tags.client

    @property
    def finished(self) -> bool:
        return self.status != "running"


class Growth:
    """More text of an output than was seen, or its end."""

    def __init__(self, output: Output, seen: int) -> None:
        self.output = output
        self.waiters: list[Waiter] = []
        self._seen = seen

    @property
    def finished(self) -> bool:
        return self.output.finished or len(self.output.partial) > self._seen


class Progress:
    """A program has written something, or is over."""

    def __init__(self) -> None:
        self.waiters: list[Waiter] = []
        self.finished = False
