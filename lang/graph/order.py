"""What has to have happened before an operation can: the edges of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lang.graph.ops import NO_STREAM, Apply, Cond, End, Join, Loop, Operation, Start, every, made_by, needed_by

if TYPE_CHECKING:
    from lang.graph.graph import Graph


def predecessors(ops: Sequence[Operation]) -> Mapping[int, frozenset[int]]:
    """Of each operation of a region: those of the same region that come before it.

    On one stream all keep their order; functions that aren't pure keep theirs; results come before what needs them.
    """
    before: dict[int, frozenset[int]] = {}
    last: dict[int, int] = {}
    effect: int | None = None
    for op in ops:
        needed = {last[stream] for stream in op.streams if stream in last}
        needed |= needed_by(op) & before.keys()
        if has_effects(op):
            if effect is not None:
                needed.add(effect)
            effect = op.id
        for stream in op.streams:
            last[stream] = op.id
        before[op.id] = frozenset(needed)
    return before


def called_alone(ops: Sequence[Operation]) -> Mapping[int, tuple[int, ...]]:
    """Of operations of called programs that nobody waits for: the starts of these programs, the innermost last.

    What goes wrong there ends such a program, and not the one that called it.
    """
    awaited = {op.child: op.awaited for op in ops if isinstance(op, End)}
    found: dict[int, tuple[int, ...]] = {}
    under_way: tuple[tuple[int, int], ...] = ()
    for op in ops:
        if under_way:
            found[op.id] = tuple(start for start, _ in under_way)
        if isinstance(op, Start) and not awaited.get(op.child, False):
            under_way = (*under_way, (op.id, op.child))
        elif isinstance(op, End) and under_way and under_way[-1][1] == op.child:
            under_way = under_way[:-1]
    return found


def has_effects(op: Operation) -> bool:
    """It calls a function that isn't pure."""
    if isinstance(op, Apply):
        return not op.pure
    return any(isinstance(inner, Apply) and not inner.pure for region in op.regions for inner in every(region.ops))


def check_order(graph: Graph) -> None:
    """Raises GraphError where an operation needs what doesn't come before it, or a number is there twice."""
    from lang.graph.graph import GraphError

    seen: set[int] = set()
    for op in graph.every():
        if op.id in seen:
            raise GraphError(f"program {graph.program!r}: operation {op.id} is there twice")
        seen.add(op.id)
    _check(graph.ops, set(), {0, NO_STREAM})


def _check(ops: Iterable[Operation], results: set[int], streams: set[int]) -> None:
    from lang.graph.graph import GraphError

    results, streams = set(results), set(streams)
    for op in ops:
        made = set(made_by(op))
        needed = needed_by(op)
        if missing := needed - results:
            raise GraphError(f"operation {op.id} ({op.line}) needs the result of {min(missing)}, which isn't there yet")
        if isinstance(op, Cond | Loop):
            for region in op.regions:
                _check(region.ops, results, streams)
        elif unknown := op.streams - made - streams:
            raise GraphError(f"operation {op.id} ({op.line}) belongs to stream {min(unknown)}, which isn't there yet")
        if isinstance(op, Join) and op.fork not in results:
            raise GraphError(f"operation {op.id} ({op.line}) joins fork {op.fork}, which isn't there yet")
        results.add(op.id)
        streams |= made
