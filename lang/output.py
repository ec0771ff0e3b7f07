"""What one `gen` or `select` will have written: known now, or once the calls before it and its own have come."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from lang.backends.base import Call, CallError
from lang.primitives import Gen, Select
from lang.prompt import BranchMark, Piece, Prompt
from lang.sampling import Sampling
from lang.speculation import Speculation

if TYPE_CHECKING:
    from lang.program_run import ProgramRun, Waiter


@dataclass(slots=True, eq=False)
class Trunk:
    """What the branches of a fork have in common, or the first calls of a batch."""

    pieces: tuple[Piece | Output, ...]
    n: int = 1
    """How many there are."""
    committed: bool = False
    """The backend was told to cache it."""
    request: int | None = None
    """The backend's number of the request that computes it."""


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
    """What is cached before it."""
    kin: Trunk | None = None
    """It is the first call of a branch of this, or of a run in a batch."""
    source: Source | None = None
    """Where the answer comes from, if not from a call of its own."""
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
    waiters: list[Waiter] = field(default_factory=list)

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

    def take(self, source: Source) -> None:
        """What the other output has is this one's answer."""
        other = source.output
        if other.problem is not None:
            if other.call is not None and other.call.error is not None:
                self.fail(CallError(f"{self.name} failed: {other.call.error}"))
            else:
                self.problem = other.problem
            return
        call = other.done()
        self.call = call if source.sample is None else sample_of(call, source.sample, self.expr.name)

    def fail(self, problem: Exception) -> None:
        problem.add_note(f"the call was made at {self.line}")
        self.problem = problem


class Source(NamedTuple):
    """Another output, one of whose samples is the answer."""

    output: Output
    sample: int | None = None
    """Of a call for several; None: the answer as it is."""


def sample_of(call: Call, i: int, name: str | None) -> Call:
    """The call that would have given the i-th sample alone, as far as the backend tells samples apart."""
    meta = dict(call.sample_meta[i]) if call.sample_meta else {**call.meta, "completion_tokens": None}
    return dataclasses.replace(
        call,
        name=name,
        texts=(call.texts[i],),
        partial="",
        meta=meta,
        requests=call.requests[i : i + 1],
        sample_meta=(),
    )


def settled(expr: Gen | Select, run: ProgramRun, where: tuple[str, int], text: str) -> Output:
    """What needs no call."""
    sampling = run.sampling.over(expr.sampling) if isinstance(expr, Gen) else run.sampling
    output = Output(expr, sampling, run, where, ())
    meta = {"prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "finish_reason": "stop", "forced": True}
    output.call = Call(name=expr.name, prompt="", tags=run.tags, finished=True, texts=(text,), meta=meta)
    return output


def resolved(pieces: Iterable[Piece | Output]) -> Iterator[Piece]:
    """With what outputs wrote in their places. Raises what went wrong with one."""
    for piece in pieces:
        if isinstance(piece, Output):
            yield piece.written
        elif isinstance(piece, BranchMark) and piece.prefix:
            yield piece._replace(prefix=Prompt.of(resolved(piece.prefix)).pieces)
        else:
            yield piece


class Gathered(NamedTuple):
    """A variable of branches that were joined."""

    values: tuple[Any, ...]


class Span(NamedTuple):
    """The text added within a `var_scope`."""

    pieces: tuple[Piece | Output, ...]


class Later(NamedTuple):
    """A variable that is made of outputs, and known once they are there."""

    outputs: tuple[Output, ...]
    value: Callable[[], Any]


class MetaOf(NamedTuple):
    output: Output


class ToolCallsOf(NamedTuple):
    output: Output


class FirstOf:
    """The first of some outputs that is finished, counted from when this is made."""

    def __init__(self, outputs: Sequence[Output]) -> None:
        self._outputs = [output for output in outputs if not output.finished]
        self.waiters: list[Waiter] = []

    @property
    def finished(self) -> bool:
        return any(output.finished for output in self._outputs)
