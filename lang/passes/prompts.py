"""The prompts of a graph's calls, as far as they are known before it runs.

A part of a prompt is text, or a tuple that names what will stand there: equal parts will be equal texts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

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
)
from lang.graph.graph import Graph
from lang.graph.ops import (
    CALLS,
    Append,
    Apply,
    Cond,
    Fork,
    Gen,
    Join,
    Loop,
    Operation,
    Read,
    Role,
    Scope,
    Select,
    Set,
    Start,
    Write,
)

Part = str | tuple[Any, ...]
Parts = tuple[Part, ...]
OUTPUT = "output"


@dataclass
class _Stream:
    parts: Parts = ()
    variables: dict[str, Part] = field(default_factory=dict)
    """Those whose value has a name of its own."""

    def copy(self) -> _Stream:
        return _Stream(self.parts, dict(self.variables))


class Prompts:
    """What stands before each call of a graph, and what stands for each result."""

    def __init__(self, graph: Graph) -> None:
        self.before: dict[int, Parts] = {}
        """By call."""
        self.region: dict[int, int] = {}
        """Which region each call is in: calls of one happen together."""
        self._results: dict[int, Part] = {}
        self._n_regions = 0
        self._walk(graph.ops, {0: _Stream()})

    def part(self, expression: Expression) -> Part:
        """Raises TypeError for a constant in memory that nothing can be known by."""
        match expression:
            case str():
                return expression
            case Argument(name=name):
                return ("argument", name)
            case Result(op=op):
                return self._results.get(op, ("result", op))
            case Round(loop=loop):
                return ("round", loop)
            case Constant(value=value):
                return ("constant", json.dumps(value, sort_keys=True))
            case Item(of=of, at=at):
                return ("item", self.part(of), at)
            case Formatted(of=of, conversion=conversion, spec=spec):
                return ("format", self.part(of), conversion, self.part(spec))
            case Template(parts=parts):
                return ("template", *map(self.part, parts))
            case Items(parts=parts, a_tuple=a_tuple):
                return ("list", a_tuple, *map(self.part, parts))
            case Record(entries=entries):
                return ("dict", *((self.part(key), self.part(value)) for key, value in entries))
            case Picture(data=data):
                return ("image", hashlib.sha256(data.encode()).hexdigest())
            case PictureOf(of=of):
                return ("image of", self.part(of))
            case InMemory(value=value):
                return ("object", id(value))

    def _written(self, expression: Expression) -> Parts:
        if isinstance(expression, Template):
            return tuple(part for one in expression.parts for part in self._written(one))
        return (self.part(expression),)

    def _walk(self, ops: Iterable[Operation], streams: dict[int, _Stream]) -> None:
        region, self._n_regions = self._n_regions, self._n_regions + 1
        for op in ops:
            here = streams.get(op.stream, _Stream())
            match op:
                case Write(part=part):
                    here.parts = joined((*here.parts, *self._written(part)))
                case Role(role=role, begins=begins):
                    here.parts = (*here.parts, ("role", role, begins))
                case Gen() | Select():
                    self.before[op.id], self.region[op.id] = here.parts, region
                    here.parts = (*here.parts, (OUTPUT, op.id))
                    self._results[op.id] = (OUTPUT, op.id)
                    if op.name is not None:
                        self._set(here, op.name, (OUTPUT, op.id) if _is_text(op) else None)
                case Set(name=name, value=value):
                    self._set(here, name, self.part(value))
                case Scope(name=name, begins=False):
                    self._set(here, name, None)
                case Read(what="value", name=str() as name) if name in here.variables:
                    self._results[op.id] = here.variables[name]
                case Apply(pure=True):
                    args = (*map(self.part, op.args), *((key, self.part(one)) for key, one in op.kwargs.items()))
                    self._results[op.id] = ("apply", op.function, *args)
                case Fork(branches=branches):
                    streams.update((branch, here.copy()) for branch in branches)
                case Start(child=child):
                    streams[child] = _Stream()
                case Append(of=of):
                    here.parts = joined((*here.parts, *streams[of].parts))
                case Join(mode=mode, branches=branches):
                    for name in {name for branch in branches for name in streams[branch].variables}:
                        self._set(here, name, None)
                    if mode == "concate_and_append":
                        here.parts = (*here.parts, ("unknown", op.id))
                case Cond() | Loop():
                    self._branches(op, streams)

    def _branches(self, op: Cond | Loop, streams: dict[int, _Stream]) -> None:
        touched = [streams[one] for one in sorted(op.streams & streams.keys())]
        if isinstance(op, Loop):  # what the rounds before did
            for stream in touched:
                stream.parts, stream.variables = (*stream.parts, ("unknown", op.id)), {}
        for region in op.regions:
            self._walk(region.ops, {number: stream.copy() for number, stream in streams.items()})
        for stream in touched:
            stream.parts, stream.variables = (*stream.parts, ("unknown", -1 - op.id)), {}

    @staticmethod
    def _set(stream: _Stream, name: str, part: Part | None) -> None:
        if part is None:
            stream.variables.pop(name, None)
        else:
            stream.variables[name] = part


def _is_text(op: Gen | Select) -> bool:
    return isinstance(op, Select) or not ({"n", "tools"} & op.sampling.keys())


def joined(parts: Iterable[Part]) -> Parts:
    """Neighbouring texts as one, empty ones left out."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        elif part != "":
            found.append(part)
    return tuple(found)


def prompts(graph: Graph) -> Mapping[int, Parts]:
    """Of each call, what stands before it."""
    return Prompts(graph).before


def constant_characters(parts: Parts) -> int:
    """Of what a prompt begins with in every run. A role counts as its name."""
    n = 0
    for part in parts:
        if isinstance(part, str):
            n += len(part)
        elif part[0] == "role":
            n += len(part[1])
        else:
            break
    return n


def shared_characters(graph: Graph) -> int:
    return sum(constant_characters(parts) for parts in prompts(graph).values())


def n_calls(graph: Graph) -> int:
    """Those that a run with outputs that repeat (greedy, or with a seed) makes."""
    return sum(
        op.same_as is None and not (isinstance(op, Gen) and op.text is not None) and not _is_one_choice(op)
        for op in graph.every()
        if isinstance(op, CALLS)
    )


def _is_one_choice(op: Gen | Select) -> bool:
    return isinstance(op, Select) and op.how == "text"


def named(op: Gen | Select) -> str:
    """For reports."""
    return f"{op.kind} {op.name!r} at {op.line}" if op.name is not None else f"a {op.kind} at {op.line}"


def changed_prompts(before: Graph, after: Graph) -> list[str]:
    """The calls whose prompts aren't what they were."""
    was = prompts(before)
    calls = {op.id: op for op in before.every() if isinstance(op, CALLS)}
    return [named(calls[number]) for number, parts in prompts(after).items() if was.get(number) != parts]
