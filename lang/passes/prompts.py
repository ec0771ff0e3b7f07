"""The prompts of a graph's calls, as far as they are known before it runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from lang.graph.expressions import Expression, Template
from lang.graph.graph import Graph
from lang.graph.ops import CALLS, Append, Cond, Fork, Gen, Join, Loop, Operation, Role, Select, Start, Write, every


class Output(NamedTuple):
    """What a call will have written."""

    call: int


class Mark(NamedTuple):
    role: str
    begins: bool


class Unknown(NamedTuple):
    """Whatever a branch, a loop or concatenated branches have written."""

    op: int


Part = Output | Mark | Unknown | Expression
Parts = tuple[Part, ...]


def prompts(graph: Graph) -> Mapping[int, Parts]:
    """Of each call, what stands before it."""
    found: dict[int, Parts] = {}
    _walk(graph.ops, {0: ()}, found)
    return found


def _walk(ops: Iterable[Operation], streams: dict[int, Parts], found: dict[int, Parts]) -> None:
    for op in ops:
        match op:
            case Write(part=part):
                more = part.parts if isinstance(part, Template) else (part,)
                streams[op.stream] = _joined((*streams[op.stream], *more))
            case Role(role=role, begins=begins):
                streams[op.stream] = (*streams[op.stream], Mark(role, begins))
            case Gen() | Select():
                found[op.id] = streams[op.stream]
                streams[op.stream] = (*streams[op.stream], Output(op.id))
            case Fork(branches=branches):
                streams.update((branch, streams[op.stream]) for branch in branches)
            case Start(child=child):
                streams[child] = ()
            case Append(of=of):
                streams[op.stream] = _joined((*streams[op.stream], *streams[of]))
            case Join(mode="concate_and_append"):
                streams[op.stream] = (*streams[op.stream], Unknown(op.id))
            case Cond() | Loop():
                touched = op.streams & streams.keys()
                if isinstance(op, Loop):  # what the rounds before wrote
                    streams.update((stream, (*streams[stream], Unknown(op.id))) for stream in touched)
                for region in op.regions:
                    _walk(region.ops, dict(streams), found)
                streams.update((stream, (*streams[stream], Unknown(-1 - op.id))) for stream in touched)


def _joined(parts: Parts) -> Parts:
    joined: list[Part] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        elif part != "":
            joined.append(part)
    return tuple(joined)


def constant_characters(parts: Parts) -> int:
    """Of what a prompt begins with in every run. A role counts as its name."""
    n = 0
    for part in parts:
        if isinstance(part, str):
            n += len(part)
        elif isinstance(part, Mark):
            n += len(part.role)
        else:
            break
    return n


def shared_characters(graph: Graph) -> int:
    return sum(constant_characters(parts) for parts in prompts(graph).values())


def n_calls(graph: Graph) -> int:
    """Those that a run with outputs that repeat (greedy, or with a seed) makes."""
    return sum(
        not (op.same_as is not None or (isinstance(op, Gen) and op.text is not None))
        for op in every(graph.ops)
        if isinstance(op, CALLS)
    )


def named(op: Operation) -> str:
    """For reports."""
    name = getattr(op, "name", None)
    return f"{op.kind if hasattr(op, 'kind') else 'call'} {name!r} at {op.line}"
