"""What one `gen` or `select` will have written: known now, or once the calls before it and its own have come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lang.backends.base import Call
from lang.primitives import Gen, Select
from lang.prompt import Piece
from lang.sampling import Sampling
from lang.speculation import Speculation

if TYPE_CHECKING:
    from lang.program_run import ProgramRun


@dataclass(slots=True, eq=False)
class Trunk:
    """What the branches of a fork have in common."""

    pieces: tuple[Piece | Output, ...]
    committed: bool = False
    """The backend was told to cache it."""


@dataclass(slots=True, eq=False)
class Output:
    """Waits for the last unfinished output before it, then for its own call."""

    expr: Gen | Select
    sampling: Sampling
    """Of a gen: what it set, and what the run sets."""
    run: ProgramRun
    where: tuple[str, int]
    """The program's own line: path and number."""
    prefix: tuple[Piece | Output, ...]
    """What stands before it. Forgotten once the call is sent."""
    trunk: Trunk | None = None
    speculation: Speculation | None = None
    """Of a gen that one over-long call may serve together with others."""
    call: Call | None = None
    """None until it is sent. Of an over-long one, once it is finished, this output's own part."""
    watched: bool = False
    """Somebody reads its text as it grows."""
    problem: Exception | None = None
    """Why there is no value: the call was refused, failed, was given up, or one before it was."""
    n_awaited: int = 0
    """Outputs before it that aren't finished."""
    followers: list[Output] = field(default_factory=list)
    """Those that wait for this one."""
    waiters: list[ProgramRun] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.problem is not None or (self.call is not None and self.call.finished)

    @property
    def name(self) -> str:
        return repr(self.expr.name) if self.expr.name is not None else "an unnamed call"

    @property
    def line(self) -> str:
        return f"{self.where[0]}:{self.where[1]}"

    @property
    def partial(self) -> str:
        """The text so far."""
        if self.call is None:
            return ""
        if self.call.finished and self.problem is None:
            return self.written
        long = self.speculation is not None and self.speculation.asks_long
        return self.speculation.shown(self.call.partial) if self.speculation is not None and long else self.call.partial

    @property
    def written(self) -> str:
        """What goes into the prompt. Raises as `done`."""
        call = self.done()
        return call.text if call.written is None else call.written

    def done(self) -> Call:
        """Its call, finished. Raises what went wrong."""
        if self.problem is not None:
            raise self.problem
        assert self.call is not None
        return self.call

    def value(self) -> Any:
        """The text, or a list of texts for n > 1. Raises as `done`."""
        call = self.done()
        return list(call.texts) if len(call.texts) > 1 else call.text

    def fail(self, problem: Exception) -> None:
        problem.add_note(f"the call was made at {self.line}")
        self.problem = problem


class Gathered(NamedTuple):
    """A variable of branches that were joined."""

    values: tuple[Any, ...]


class Span(NamedTuple):
    """The text added within a `var_scope`."""

    pieces: tuple[Piece | Output, ...]
