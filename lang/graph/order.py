"""What has to have happened before an operation can: the edges of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lang.graph.ops import NO_STREAM, Apply, Cond, Join, Loop, Operation, every, made_by, needed_by

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
