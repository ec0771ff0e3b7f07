"""Does one operation of a graph on the states of a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lang import hints, primitives
from lang.capabilities import Feature
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
from lang.sampling import NAMES, Sampling
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
    if op.text is not None and says(op.text, sampling):
        output = state._add_settled(expr, op.text)
    elif sampling.repeats and (same := _same(op, environment)) is not None:
        output = state._add_call(expr, same)
    elif op.sample_of is not None and _one_of_many(state, sampling):
        first, number = op.sample_of
        output = state._add_sample(expr, environment.result(first), number)
    elif op.n_samples > 1 and _one_of_many(state, sampling):
        output = state._add_first_sample(expr, op.n_samples)
    else:
        output = state._add_call(expr)
    environment.results[op.id] = output


def _one_of_many(state: ProgramState, sampling: Sampling) -> bool:
    """Equal gens with it are samples of one call: they are drawn, and nothing is told of the first alone."""
    alone = sampling.n == 1 and sampling.logprobs is None and not sampling.tools
    return alone and not sampling.repeats and Feature.N not in state._runner.backend.capabilities.missing


def says(text: str, sampling: Sampling) -> bool:
    """A gen that can only say this does say it: it isn't cut off, and nothing else is told of it."""
    told = sampling.n == 1 and sampling.logprobs is None
    return told and len(text.encode()) <= sampling.max_tokens and not any(stop in text for stop in sampling.stop)


def _same(op: Gen | Select, environment: Environment) -> Source | None:
    """The call that answers it, if one does."""
    if op.same_as is None or not all(number in environment.answered for number in op.same_if):
        return None
    environment.answered.add(op.id)
    return Source(environment.result(op.same_as))


def _select(op: Select, environment: Environment) -> None:
    state = _at(op, environment)
    choices = tuple(environment.value(choice) for choice in op.choices)
    expr: primitives.Gen | primitives.Select = primitives.select(op.name, choices, choices_method=METHODS[op.method])
    if (same := _same(op, environment)) is not None:
        output = state._add_call(expr, same)
    elif op.how == "text":
        output = state._add_settled(expr, choices[0])
    elif op.how == "trie" and Feature.REGEX not in state._runner.backend.capabilities.missing:
        output = state._add_call(held_to(op.name, choices))
    else:
        output = state._add_call(expr)
    environment.results[op.id] = output


def held_to(name: str | None, choices: Sequence[str]) -> primitives.Gen:
    """A greedy gen that can write nothing but one of the choices."""
    pattern = "|".join(re.escape(choice) for choice in dict.fromkeys(choices))
    room = max(len(choice.encode()) for choice in choices) + 1
    sampling = Sampling(temperature=0, max_tokens=room, regex=f"({pattern})")  # all of it: nothing comes from the run
    return primitives.Gen(name, {name: getattr(sampling, name) for name in NAMES})


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
        if op.name not in state and state in environment.failures:
            why = environment.failures[state]
            raise KeyError(f"no variable {op.name!r}: the program failed before it was made") from why
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
