"""Prefetch: the engine is told at the start which prefixes come, and in how many calls of the program.

Policies hear it as `on_hint(Prefetch(prefix, steps))`. It changes no answer.
"""

from __future__ import annotations

from collections.abc import Mapping

from lang.graph.expressions import Argument, Expression, Template, is_constant, results_in, walk
from lang.graph.graph import Graph
from lang.graph.ops import CALLS, Cond, Fork, Loop, Operation, Prefetch, Role, Start, Write, every, made_by
from lang.graph.order import predecessors
from lang.passes.base import Notes, Pass
from lang.passes.prompts import OUTPUT, Part, Prompts

LONG_ENOUGH = 64
"""Characters from which a prefix is worth a hint."""


def prefetch(min_characters: int = LONG_ENOUGH) -> Pass:
    """Hints for every call that isn't among the first: what its prompt begins with, as far as a run knows it from the
    start."""
    return Pass("prefetch", lambda graph, notes: _change(graph, notes, min_characters))


def _change(graph: Graph, notes: Notes, min_characters: int) -> Graph:
    number = max((op.id for op in graph.every()), default=-1) + 1
    depths = _depths(graph)
    soonest: dict[tuple[Write | Role, ...], int] = {}
    for call, prefix in _known_prefixes(graph).items():
        if depths[call] and _characters(prefix) >= min_characters:
            soonest[prefix] = min(depths[call], soonest.get(prefix, depths[call]))
    hints: list[Operation] = []
    for prefix, steps in sorted(soonest.items(), key=lambda found: found[1]):
        hints.append(Prefetch(id=number + len(hints), prefix=prefix, steps=steps, line=prefix[0].line))
        notes.changes.append(f"a prefix of {_characters(prefix)} characters or more is used in {steps} calls")
    return graph.changed([*hints, *graph.ops])


def _depths(graph: Graph) -> dict[int, int]:
    """Of each call: how many calls must have ended before it, at the least."""
    after = _after(graph.ops, 0)
    depths: dict[int, int] = {}

    def depth(part: Part) -> int:
        if isinstance(part, str):
            return 0
        if part[0] == OUTPUT:
            return depths[part[1]] + 1
        if part[0] in ("result", "unknown"):
            return after.get(part[1] if part[1] >= 0 else -1 - part[1], 0)
        return max((depth(one) for one in part if isinstance(one, tuple)), default=0)

    within = _entered(graph.ops, after)
    for call, parts in Prompts(graph).before.items():
        depths[call] = max([within.get(call, 0), *map(depth, parts)])
    return depths


def _after(ops: tuple[Operation, ...], before: int) -> dict[int, int]:
    """Of each operation: calls that end before it is over, when all on a stream wait for one another."""
    after: dict[int, int] = {}
    order = predecessors(ops)
    for op in ops:
        here = max((after[number] for number in order[op.id]), default=before) + isinstance(op, CALLS)
        inside = [_after(region.ops, here) for region in op.regions]
        after[op.id] = max([here, *(deep for found in inside for deep in found.values())])
        for found in inside:
            after |= found
    return after


def _entered(ops: tuple[Operation, ...], after: dict[int, int]) -> dict[int, int]:
    """Of calls in conds: what must have ended before anybody knows that they are made."""
    found: dict[int, int] = {}
    for op in ops:
        if isinstance(op, Cond):
            begun = max((after.get(number, 0) for number in results_in(op.test)), default=0)
            inside = (one for region in op.regions for one in every(region.ops))
            found |= {one.id: max(begun, found.get(one.id, 0)) for one in inside if isinstance(one, CALLS)}
        for region in op.regions:
            deeper = _entered(region.ops, after)
            found |= {number: max(steps, found.get(number, 0)) for number, steps in deeper.items()}
    return found


def _known_prefixes(graph: Graph) -> Mapping[int, tuple[Write | Role, ...]]:
    """Of each call, what a run knows of its prompt when it starts."""
    found: dict[int, tuple[Write | Role, ...]] = {}
    _follow(graph.ops, {0: ((), True)}, found)
    return found


_Known = tuple[Write | Role, ...]
_Stream = tuple[_Known, bool]
"""What is known, and whether that is all so far."""


def _follow(
    ops: tuple[Operation, ...], streams: dict[int, _Stream], found: dict[int, tuple[Write | Role, ...]]
) -> None:
    for op in ops:
        known, whole = streams.get(op.stream, ((), False))
        if isinstance(op, CALLS):
            found[op.id] = known
            streams[op.stream] = (known, False)
        elif isinstance(op, Write) and whole:
            part, whole = _start_of(op.part)
            streams[op.stream] = ((*known, Write(id=0, part=part, line=op.line)) if part != "" else known, whole)
        elif isinstance(op, Role) and whole:
            streams[op.stream] = ((*known, Role(id=0, role=op.role, begins=op.begins, line=op.line)), True)
        elif isinstance(op, Fork | Start):
            streams.update((made, (known, whole) if isinstance(op, Fork) else ((), True)) for made in made_by(op))
        elif isinstance(op, Cond | Loop):
            touched = op.streams & streams.keys()
            for region in op.regions:
                inside = dict(streams)
                if isinstance(op, Loop):
                    inside |= {one: (streams[one][0], False) for one in touched}
                _follow(region.ops, inside, found)
            streams.update((one, (streams[one][0], False)) for one in touched)
        elif op.kind in ("append", "join") and op.stream in streams:  # type: ignore[attr-defined]
            streams[op.stream] = (known, whole and op.kind == "join" and op.mode != "concate_and_append")  # type: ignore[attr-defined]


def _start_of(part: Expression) -> tuple[Expression, bool]:
    """As much of it as a run knows when it starts, and whether that is all."""
    parts = part.parts if isinstance(part, Template) else (part,)
    known: list[Expression] = []
    for one in parts:
        if not all(isinstance(inner, Argument) or is_constant(inner) for inner in walk(one)):
            break
        known.append(one)
    whole = len(known) == len(parts)
    return (part if whole else Template(parts=tuple(known)) if known else ""), whole


def _characters(prefix: tuple[Write | Role, ...]) -> int:
    """At least so many: of an argument nobody knows how long it is."""
    texts = (part for op in prefix if isinstance(op, Write) for part in walk(op.part) if isinstance(part, str))
    return sum(len(text) for text in texts)
