"""Changing operations of a graph, wherever they stand."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from lang.graph.graph import Graph
from lang.graph.ops import Cond, Loop, Operation, region_of

Change = Callable[[list[Operation]], list[Operation]]


def each_region(graph: Graph, change: Change) -> Graph:
    """Changes the operations of every region, the innermost first."""
    return graph.changed(_changed(graph.ops, change))


def each_operation(graph: Graph, change: Callable[[Operation], Operation]) -> Graph:
    return each_region(graph, lambda ops: [change(op) for op in ops])


def _changed(ops: Iterable[Operation], change: Change) -> list[Operation]:
    found: list[Operation] = []
    for op in ops:
        if isinstance(op, Cond):
            then, otherwise = (region_of(_changed(region.ops, change)) for region in op.regions)
            op = op.model_copy(update={"then": then, "otherwise": otherwise})
        elif isinstance(op, Loop):
            op = op.model_copy(update={"body": region_of(_changed(op.body.ops, change))})
        found.append(op)
    return change(found)
