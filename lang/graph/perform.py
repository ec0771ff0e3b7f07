"""Does one operation of a graph on the states of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lang import hints, primitives
from lang.choices import METHODS
from lang.graph.environment import Environment
from lang.graph.functions import BUILTIN
from lang.graph.ops import (
    Append,
    Apply,
    End,
    Fork,
    Gen,
    Join,
    Operation,
    Prefetch,
    Read,
    Role,
    Scope,
    Select,
    Set,
    Start,
    Write,
)
from lang.graph.sampling import from_json
from lang.output import MetaOf, Output, Source, Span, ToolCallsOf
from lang.prompt import Piece, Prompt, RoleMark
from lang.state import ProgramState


def perform(op: Operation, environment: Environment) -> Any:
    """What the program read with it, if it did: without a value, the program fails. Raises what goes wrong."""
    return _HOW[type(op)](op, environment)


def _write(op: Write, environment: Environment) -> None:
    state = _at(op, environment)
    for piece in environment.pieces(op.part):
        state._add_open(piece)


def _role(op: Role, environment: Environment) -> None:
    _at(op, environment)._add_open(RoleMark(op.role, op.begins))


def _gen(op: Gen, environment: Environment) -> None:
    state = _at(op, environment)
    expr = primitives.Gen(op.name, from_json(op.sampling))
    sampling = state._run.sampling.over(expr.sampling)
    if op.text is not None:
        output = state._add_settled(expr, op.text)
    elif op.same_as is not None and sampling.repeats:
        output = state._add_call(expr, Source(environment.result(op.same_as)))
    elif op.sample_of is not None and not sampling.repeats:
        first, number = op.sample_of
        output = state._add_sample(expr, environment.result(first), number)
    elif op.n_samples > 1 and not sampling.repeats:
        output = state._add_first_sample(expr, op.n_samples)
    else:
        output = state._add_call(expr)
    environment.results[op.id] = output


def _select(op: Select, environment: Environment) -> None:
    state = _at(op, environment)
    choices = tuple(environment.value(choice) for choice in op.choices)
    expr = primitives.select(op.name, choices, choices_method=METHODS[op.method])
    if op.same_as is not None:
        environment.results[op.id] = state._add_call(expr, Source(environment.result(op.same_as)))
    else:
        environment.results[op.id] = state._add_call(expr)


def _set(op: Set, environment: Environment) -> None:
    _at(op, environment)[op.name] = environment.later(op.value)


def _fork(op: Fork, environment: Environment) -> None:
    group = _at(op, environment).fork(len(op.branches))
    environment.groups[op.id] = group
    environment.streams.update(zip(op.branches, group))


def _join(op: Join, environment: Environment) -> None:
    environment.group(op.fork).join(op.mode)


def _scope(op: Scope, environment: Environment) -> None:
    state = _at(op, environment)
    if op.begins:
        state._begin_scope(op.name)
    else:
        state._end_scope(op.name)


def _read(op: Read, environment: Environment) -> Any:
    state = environment.stream(op.stream)
    if op.what == "text":
        held: Any = Span(tuple(state._pieces))
    else:
        assert op.name is not None
        held = state._variable(op.name)
        if op.what != "value":
            if not isinstance(held, Output):
                raise KeyError(f"variable {op.name!r} was set by the program: no call made it, so it has no {op.what}")
            held = MetaOf(held) if op.what == "meta" else ToolCallsOf(held)
    environment.results[op.id] = held
    return held


def _append(op: Append, environment: Environment) -> None:
    state = _at(op, environment)
    for piece in tuple(environment.stream(op.of)._pieces):
        state._add_open(piece)


def _apply(op: Apply, environment: Environment) -> None:
    function: Callable[..., Any] = BUILTIN.get(op.function) or environment.graph.functions[op.function]
    args = [environment.value(arg) for arg in op.args]
    kwargs: Mapping[str, Any] = {name: environment.value(value) for name, value in op.kwargs.items()}
    environment.results[op.id] = function(*args, **kwargs)


def _start(op: Start, environment: Environment) -> None:
    state = environment.state
    environment.streams[op.child] = ProgramState(state._runner, state._run)


def _end(op: End, environment: Environment) -> Any:
    return Span(tuple(environment.stream(op.child)._pieces)) if op.awaited else None


def _prefetch(op: Prefetch, environment: Environment) -> None:
    state = environment.state
    pieces: list[Piece] = []
    for part in op.prefix:
        if isinstance(part, Role):
            pieces.append(RoleMark(part.role, part.begins))
        else:
            pieces += environment.pieces(part.part)
    state._runner.backend.hint(hints.Prefetch(Prompt.of(pieces), op.steps), state._run.tags)


def _at(op: Operation, environment: Environment) -> ProgramState:
    """Its stream, told which line of the program speaks."""
    state = environment.stream(op.stream)
    path, _, number = op.line.rpartition(":")
    state._line = (path, int(number)) if number.isdigit() else (op.line, 0)
    return state


_HOW: Mapping[type[Operation], Callable[[Any, Environment], Any]] = {
    Write: _write,
    Role: _role,
    Gen: _gen,
    Select: _select,
    Set: _set,
    Fork: _fork,
    Join: _join,
    Scope: _scope,
    Read: _read,
    Append: _append,
    Apply: _apply,
    Start: _start,
    End: _end,
    Prefetch: _prefetch,
}
