"""What a graph's operations have given so far, and what expressions over it are worth."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lang.graph.expressions import (
    Argument,
    Constant,
    Expression,
    Formatted,
    InMemory,
    Item,
    Items,
    Picture,
    PictureOf,
    Record,
    Result,
    Round,
    Template,
    converted,
    inner,
)
from lang.graph.ops import Operation, Set, Write
from lang.image import image_of
from lang.output import Gathered, Later, MetaOf, Output, Span, ToolCallsOf
from lang.primitives import Gen, parts_of

if TYPE_CHECKING:
    from lang.graph.graph import Graph
    from lang.group import ProgramStateGroup
    from lang.state import ProgramState


class Environment:
    """Streams, forks and results by their numbers; those of a region within those around it."""

    def __init__(
        self, graph: Graph, arguments: Mapping[str, Any], state: ProgramState, outer: Environment | None = None
    ) -> None:
        self.graph = graph
        self.arguments = arguments
        self.state = state
        self.outer = outer
        self.streams: dict[int, ProgramState] = {} if outer is not None else {0: state}
        self.groups: dict[int, ProgramStateGroup] = {}
        self.results: dict[int, Any] = {}
        """As they are held: perhaps still to come."""
        self.rounds: dict[int, int] = {}
        """Of the loops around."""
        self.failures: dict[ProgramState, Exception] = outer.failures if outer is not None else {}
        """Of called programs that failed alone."""
        self.answered: set[int] = outer.answered if outer is not None else set()
        """Calls that others have answered."""

    @classmethod
    def within(cls, outer: Environment) -> Environment:
        return cls(outer.graph, outer.arguments, outer.state, outer)

    def stream(self, number: int) -> ProgramState:
        return self._found("streams", number)

    def group(self, number: int) -> ProgramStateGroup:
        return self._found("groups", number)

    def result(self, number: int) -> Any:
        return self._found("results", number)

    def _found(self, kind: str, number: int) -> Any:
        here: Environment | None = self
        while here is not None:
            found = getattr(here, kind)
            if number in found:
                return found[number]
            here = here.outer
        raise KeyError(f"{kind} has no {number}: the graph was changed so that it no longer fits together")

    # ---- what is still to come

    def missing(self, op: Operation) -> list[Output]:
        """Outputs that must be there before the operation can be done."""
        if isinstance(op, Set):
            return []
        if isinstance(op, Write):
            return self._missing_to_write(op.part)
        return self.missing_in(op.expressions)

    def missing_in(self, expressions: Iterable[Expression]) -> list[Output]:
        """Outputs that must be there before the expressions have values."""
        return [output for one in expressions for output in self._outputs(one) if not output.finished]

    def _missing_to_write(self, part: Expression) -> list[Output]:
        if isinstance(part, Template):
            return [output for inner_ in part.parts for output in self._missing_to_write(inner_)]
        held = self._held(part)
        if _is_text(held):
            return []
        return self.missing_in([part])

    def _outputs(self, expression: Expression) -> Iterator[Output]:
        held = self._held(expression)
        if held is not None:
            yield from outputs_in(held)
        elif not isinstance(expression, str):
            for part in inner(expression):
                yield from self._outputs(part)

    def _held(self, expression: Expression) -> Any:
        """What a result, or an item of one, is as long as it may be to come; None for other expressions."""
        if isinstance(expression, Result):
            return self.result(expression.op)
        if isinstance(expression, Item):
            of = self._held(expression.of)
            if isinstance(of, Gathered):
                return of.values[expression.at]
        return None

    # ---- values

    def value(self, expression: Expression) -> Any:
        """Waits for nothing unless it must. Raises what went wrong with an output in it."""
        match expression:
            case str():
                return expression
            case Constant(value=value):
                return copy.deepcopy(value) if isinstance(value, list | dict) else value  # each run's own
            case InMemory(value=value):
                return value
            case Argument(name=name):
                return self.arguments[name]
            case Result(op=op):
                return self.state._value(self.result(op))
            case Round(loop=loop):
                return self._found("rounds", loop)
            case Item(of=of, at=at):
                held = self._held(expression)
                return self.value(of)[at] if held is None else self.state._value(held)
            case Formatted(of=of, conversion=conversion, spec=spec):
                return format(converted(self.value(of), conversion), self.value(spec))
            case Template(parts=parts):
                return "".join([_as_text(self.value(part)) for part in parts])
            case Items(parts=parts, a_tuple=a_tuple):
                values = [self.value(part) for part in parts]
                return tuple(values) if a_tuple else values
            case Record(entries=entries):
                return {self.value(key): self.value(value) for key, value in entries}
            case Picture():
                return expression.image
            case PictureOf(of=of):
                return image_of(self.value(of))

    def pieces(self, part: Expression) -> Iterator[Any]:
        """What goes into a prompt: texts and images, and outputs still to come."""
        if isinstance(part, Template):
            for one in part.parts:
                held = self._held(one)
                yield held if _is_text(held) else _as_text(self.value(one))
            return
        held = self._held(part)
        if _is_text(held):
            yield held
        else:
            yield from parts_of(self.value(part))

    def later(self, expression: Expression) -> Any:
        """The value, or what will be it: see `lang.output.Later`."""
        outputs = tuple(self._outputs(expression))
        return Later(outputs, lambda: self.value(expression)) if outputs else self.value(expression)


def outputs_in(held: Any) -> Iterator[Output]:
    """The outputs that a variable, or what was read, is made of."""
    match held:
        case Output():
            yield held
        case Gathered(values=values):
            for value in values:
                yield from outputs_in(value)
        case Span(pieces=pieces):
            for piece in pieces:
                if isinstance(piece, Output):
                    yield piece
        case Later(outputs=outputs):
            yield from outputs
        case MetaOf(output=output) | ToolCallsOf(output=output):
            yield output


def _is_text(held: Any) -> bool:
    """It is one output, whose text goes into a prompt as it is."""
    if not isinstance(held, Output):
        return False
    return not isinstance(held.expr, Gen) or (held.sampling.n == 1 and not held.sampling.tools)


def _as_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} {value!r:.80} can't be added to a text: use str(...) or an f-string")
    return value
