"""The operations of a graph, in the order in which the program does them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from lang.graph.expressions import Expression, Model, results_in

NO_STREAM = -1


class Operation(Model):
    id: int
    stream: int = NO_STREAM
    """The prompt that it belongs to: operations on one stream happen in their order. 0 is the program's own."""
    line: str = ""
    """path:line of the program."""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        """What it takes."""
        return ()

    @property
    def answered_by(self) -> frozenset[int]:
        """Calls that may answer it, or decide whether they do."""
        return frozenset()

    @property
    def streams(self) -> frozenset[int]:
        """All streams whose order it belongs to."""
        return frozenset() if self.stream == NO_STREAM else frozenset({self.stream})

    @property
    def regions(self) -> tuple[Region, ...]:
        return ()


class Write(Operation):
    """Text or an image goes into the prompt."""

    kind: Literal["write"] = "write"
    part: Expression
    movable: int | None = None
    """Number of the `movable(...)` that it is in: all its operations may be moved together."""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return (self.part,)


class Role(Operation):
    kind: Literal["role"] = "role"
    role: str
    begins: bool
    movable: int | None = None


def _answered_by(call: int | None, given: tuple[int, ...]) -> frozenset[int]:
    return frozenset(given) | (frozenset() if call is None else {call})


class Gen(Operation):
    """Gives text (a list of texts for n > 1)."""

    kind: Literal["gen"] = "gen"
    name: str | None
    sampling: Mapping[str, JsonValue]
    """Only what the program set; the rest comes from the run."""
    same_as: int | None = None
    """A gen after the same prompt with the same sampling: where its output is the same too, it isn't asked twice."""
    same_if: tuple[int, ...] = ()
    """And only if these, in its prompt, were answered by others too."""
    sample_of: tuple[int, int] | None = None
    """(gen, number): where outputs are drawn at random, it is that sample of a call of that gen for several."""
    n_samples: int = 1
    """How many equal gens its call answers, itself included."""
    text: str | None = None
    """The only thing that it can say: no call is made."""

    @property
    def answered_by(self) -> frozenset[int]:
        return _answered_by(self.same_as, self.same_if) | _answered_by(self.sample_of and self.sample_of[0], ())


class Select(Operation):
    """Gives the text of a choice."""

    kind: Literal["select"] = "select"
    name: str | None
    choices: tuple[Expression, ...]
    method: str
    how: Literal["score", "trie", "text"] = "score"
    """score: all choices after the prompt. trie: decoding held to the choices. text: there is but one choice."""
    same_as: int | None = None
    same_if: tuple[int, ...] = ()

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return self.choices

    @property
    def answered_by(self) -> frozenset[int]:
        return _answered_by(self.same_as, self.same_if)


class Set(Operation):
    """`s[name] = value`."""

    kind: Literal["set"] = "set"
    name: str
    value: Expression

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return (self.value,)


class Fork(Operation):
    kind: Literal["fork"] = "fork"
    branches: tuple[int, ...]
    """Their streams."""

    @property
    def streams(self) -> frozenset[int]:
        return frozenset({self.stream, *self.branches})


class Join(Operation):
    kind: Literal["join"] = "join"
    fork: int
    branches: tuple[int, ...]
    mode: str

    @property
    def streams(self) -> frozenset[int]:
        return frozenset({self.stream, *self.branches})


class Scope(Operation):
    """A `var_scope` begins or ends."""

    kind: Literal["scope"] = "scope"
    name: str
    begins: bool


class Read(Operation):
    """Gives a variable of the stream, what is known of it, or the whole text. Without a value, the program fails."""

    kind: Literal["read"] = "read"
    what: Literal["value", "meta", "tool_calls", "text"]
    name: str | None = None


class Append(Operation):
    """All that stands in another stream goes into the prompt."""

    kind: Literal["append"] = "append"
    of: int

    @property
    def streams(self) -> frozenset[int]:
        return frozenset({self.stream, self.of})


class Apply(Operation):
    """Gives what a Python function makes of values."""

    kind: Literal["apply"] = "apply"
    function: str
    """`str.NAME` and `operator.NAME`; else module:qualname, which whoever loads the graph must have."""
    args: tuple[Expression, ...] = ()
    kwargs: Mapping[str, Expression] = Field(default_factory=dict)
    pure: bool = False
    """Its value depends on nothing but its arguments, and it does nothing else."""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return (*self.args, *self.kwargs.values())


class Start(Operation):
    """A program that this one calls begins, on a stream of its own."""

    kind: Literal["start"] = "start"
    program: str
    child: int

    @property
    def streams(self) -> frozenset[int]:
        return frozenset({self.child})


class End(Operation):
    """That program ends. `awaited`: if it failed, so does the one that ran it."""

    kind: Literal["end"] = "end"
    child: int
    awaited: bool

    @property
    def streams(self) -> frozenset[int]:
        return frozenset({self.child})


class Prefetch(Operation):
    """The engine is told that calls with this prefix follow."""

    kind: Literal["prefetch"] = "prefetch"
    prefix: tuple[Annotated[Write | Role, Field(discriminator="kind")], ...]
    steps: int
    """Calls of the program before that."""

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return tuple(part.part for part in self.prefix if isinstance(part, Write))


class Region(Model):
    ops: tuple[AnyOperation, ...] = ()

    @cached_property
    def before(self) -> Mapping[int, frozenset[int]]:
        """Of each operation: those of the region that come before it (see `predecessors`)."""
        from lang.graph.order import predecessors

        return predecessors(self.ops)

    @cached_property
    def called_alone(self) -> Mapping[int, tuple[int, ...]]:
        """See `lang.graph.order.called_alone`."""
        from lang.graph.order import called_alone

        return called_alone(self.ops)


class _Control(Operation):
    @property
    def streams(self) -> frozenset[int]:
        """Those from outside that its regions touch, too."""
        inside = [op for region in self.regions for op in region.ops]  # those in deeper regions speak for theirs
        made = {stream for op in inside for stream in made_by(op)}
        touched = {stream for op in inside for stream in op.streams}
        return frozenset({self.stream} | (touched - made))


class Cond(_Control):
    """One of two regions happens."""

    kind: Literal["cond"] = "cond"
    test: Expression
    then: Region
    otherwise: Region

    @property
    def expressions(self) -> tuple[Expression, ...]:
        return (self.test,)

    @property
    def regions(self) -> tuple[Region, ...]:
        return self.then, self.otherwise


class Loop(_Control):
    """The body happens at least once (for `limit` of 1 or more), until `until` is true after a round."""

    kind: Literal["loop"] = "loop"
    body: Region
    until: Expression
    limit: int

    @property
    def regions(self) -> tuple[Region, ...]:
        return (self.body,)


AnyOperation = Annotated[
    Write
    | Role
    | Gen
    | Select
    | Set
    | Fork
    | Join
    | Scope
    | Read
    | Append
    | Apply
    | Start
    | End
    | Prefetch
    | Cond
    | Loop,
    Field(discriminator="kind"),
]

for _model in (Region, Cond, Loop, Prefetch):
    _model.model_rebuild()

CALLS = (Gen, Select)


def region_of(ops: Iterable[Operation]) -> Region:
    return Region(ops=tuple(ops))  # type: ignore[arg-type]


def every(ops: tuple[Operation, ...]) -> Iterator[Operation]:
    """All operations, those in regions after the one that they belong to."""
    for op in ops:
        yield op
        for region in op.regions:
            yield from every(region.ops)


def made_by(op: Operation) -> tuple[int, ...]:
    """The streams that begin with it."""
    if isinstance(op, Fork):
        return op.branches
    return (op.child,) if isinstance(op, Start) else ()


def needed_by(op: Operation) -> set[int]:
    """The operations whose results it, or what is in its regions, needs from outside of it."""
    needed = {one for expression in op.expressions for one in results_in(expression)} | op.answered_by
    inside = {inner.id for region in op.regions for inner in every(region.ops)}
    for region in op.regions:
        for inner in region.ops:
            needed |= needed_by(inner)
    if isinstance(op, Loop):
        needed |= set(results_in(op.until))
    return needed - inside
