"""Whether a graph that was read from a file can be run: each reference leads somewhere, each value is one it may be."""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from lang.choices import METHODS
from lang.function import RESERVED
from lang.graph.expressions import Argument, Expression, InMemory, Picture, Result, Round, is_constant, walk
from lang.graph.ops import (
    NO_STREAM,
    Apply,
    End,
    Fork,
    Gen,
    Join,
    Loop,
    Operation,
    Prefetch,
    Read,
    Role,
    Select,
    Start,
    made_by,
)
from lang.graph.order import check_order
from lang.graph.sampling import from_json
from lang.group import JOINS
from lang.sampling import NAMES, Sampling, closest

if TYPE_CHECKING:
    from lang.graph.graph import Graph

_ROLES = ("system", "user", "assistant")
_GIVE = (Gen, Select, Read, Apply)
"""Operations that have results."""


def check_loaded(graph: Graph) -> None:
    """Raises GraphError, which says where."""
    _check_arguments(graph)
    check_order(graph)
    _Checker(graph).region(graph.ops, {}, set())


def _check_arguments(graph: Graph) -> None:
    seen: set[str] = set()
    for name in graph.arguments:
        if not name.isidentifier() or keyword.iskeyword(name) or name == "s" or name in RESERVED:
            _refuse(f"argument {name!r}", "its name can't be an argument's")
        if name in seen:
            _refuse(f"argument {name!r}", "it is there twice")
        seen.add(name)
    for name, default in graph.defaults.items():
        if name not in seen:
            _refuse(f"default of {name!r}", "there is no such argument")
        if not is_constant(default):
            _refuse(f"default of {name!r}", "it depends on the run; a default is a constant")
        _Checker(graph).expression(default, f"default of {name!r}", {}, set())


class _Checker:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._streams = {0, NO_STREAM}

    def region(self, ops: Iterable[Operation], before: dict[int, Operation], loops: set[int]) -> None:
        """before: the operations whose results can be used. loops: those around."""
        seen = dict(before)
        for op in ops:
            where = f"operation {op.id} ({op.line})"
            for expression in op.expressions:
                self.expression(expression, where, seen, loops)
            self._own(op, where, seen)
            for stream in made_by(op):
                if stream in self._streams:
                    _refuse(where, f"stream {stream} is there already")
                self._streams.add(stream)
            for region in op.regions:
                inside = loops | {op.id} if isinstance(op, Loop) else loops
                self.region(region.ops, seen, inside)
                if isinstance(op, Loop):
                    in_round = {**seen, **{inner.id: inner for inner in region.ops}}
                    self.expression(op.until, f"end of loop {op.id} ({op.line})", in_round, inside)
            seen[op.id] = op
        if ops is self._graph.ops:
            self.expression(self._graph.returns, "what the program returns", seen, set())

    def expression(self, expression: Expression, where: str, seen: dict[int, Operation], loops: set[int]) -> None:
        for part in walk(expression):
            match part:
                case InMemory():
                    _refuse(where, "a value of kind 'object' has no form in a file")
                case Argument(name=name) if name not in self._graph.arguments:
                    _refuse(where, f"there is no argument {name!r}")
                case Result(op=op) if not isinstance(seen.get(op), _GIVE):
                    known = "gives no result" if op in seen else "isn't there yet"
                    _refuse(where, f"it needs the result of operation {op}, which {known}")
                case Round(loop=loop) if loop not in loops:
                    _refuse(where, f"it needs the round of loop {loop}, and isn't in it")
                case Picture():
                    try:
                        _ = part.image
                    except ValueError as error:
                        _refuse(where, f"its picture can't be read: {error}")

    def _own(self, op: Operation, where: str, seen: dict[int, Operation]) -> None:
        match op:
            case Gen():
                _check_sampling(op, where)
                if op.sample_of is not None:
                    self._call(op.sample_of[0], Gen, where, seen)
                if op.same_as is not None:
                    self._call(op.same_as, Gen, where, seen)
            case Select(method=method):
                if method not in METHODS:
                    _refuse(where, f"unknown method {method!r}{closest(method, METHODS)} known: {', '.join(METHODS)}")
                if op.same_as is not None:
                    self._call(op.same_as, Select, where, seen)
            case Role(role=role):
                _check_role(role, where)
            case Prefetch(prefix=prefix):
                for part in prefix:
                    if isinstance(part, Role):
                        _check_role(part.role, where)
            case Join(mode=mode, fork=fork, branches=branches):
                made = seen.get(fork)
                if not isinstance(made, Fork) or made.branches != branches or made.stream != op.stream:
                    _refuse(where, f"operation {fork} is no fork of its stream into {list(branches)}")
                if mode not in JOINS:
                    _refuse(where, f"unknown mode {mode!r} of join; known: {', '.join(JOINS)}")
            case End(child=child):
                if not any(isinstance(one, Start) and one.child == child for one in seen.values()):
                    _refuse(where, f"no program began on stream {child}")
            case Read(what=what, name=None) if what != "text":
                _refuse(where, f"a read of {what} needs a name")
            case Loop(limit=limit) if limit < 1:
                _refuse(where, f"limit {limit} is not allowed: a loop has 1 round or more")

    def _call(self, number: int, kind: type[Operation], where: str, seen: dict[int, Operation]) -> None:
        if not isinstance(seen.get(number), kind):
            _refuse(where, f"operation {number} is no {kind.__name__.lower()} before it")


def _check_sampling(op: Gen, where: str) -> None:
    for name in op.sampling:
        if name not in NAMES:
            _refuse(where, f"no gen takes {name!r}{closest(name, NAMES)} see the parameters of gen")
    try:
        Sampling().over(from_json(op.sampling))
    except (TypeError, ValueError) as error:
        _refuse(where, str(error))


def _check_role(role: str, where: str) -> None:
    if role not in _ROLES:
        _refuse(where, f"unknown role {role!r}; known: {', '.join(_ROLES)}")


def _refuse(where: str, what: str) -> NoReturn:
    from lang.graph.graph import GraphError

    raise GraphError(f"{where}: {what}")
