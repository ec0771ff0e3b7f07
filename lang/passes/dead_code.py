"""Dead code: calls whose answer nothing needs aren't made.

Needed is what the program's own prompt holds, what it reads, returns and gathers, what its conds, loops and functions
with effects look at, and everything that stands before any of that in the same prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from lang.graph.expressions import results_in
from lang.graph.graph import Graph
from lang.graph.ops import (
    CALLS,
    NO_STREAM,
    Append,
    Apply,
    End,
    Fork,
    Join,
    Operation,
    Read,
    Scope,
    Set,
    Start,
    made_by,
    needed_by,
)
from lang.graph.order import has_effects
from lang.passes.base import Notes, Pass
from lang.passes.prompts import named


def dead_code() -> Pass:
    """Leaves out calls of branches and of called programs that nothing needs, and unused pure functions."""
    return Pass("dead_code", _change)


def _change(graph: Graph, notes: Notes) -> Graph:
    live = _live(graph.ops, set(results_in(graph.returns)))
    for op in graph.ops:
        if op.id not in live and isinstance(op, CALLS):
            notes.changes.append(f"{named(op)} isn't made: nothing needs it")
    return graph.changed(op for op in graph.ops if op.id in live)


def _live(ops: Sequence[Operation], needed: set[int]) -> set[int]:
    """Numbers of the operations that stay."""
    by_id = {op.id: op for op in ops}
    on: dict[int, list[Operation]] = {}
    origin: dict[int, Operation] = {}
    for op in ops:
        for stream in op.streams - {NO_STREAM}:
            on.setdefault(stream, []).append(op)
        for stream in made_by(op):
            origin[stream] = op
    live: set[int] = set()
    ways = [op for op in ops if _is_root(op) or op.id in needed]
    while ways:
        op = ways.pop()
        if op.id in live:
            continue
        live.add(op.id)
        ways += [by_id[number] for number in needed_by(op) if number in by_id]
        for stream in _content(op):
            begun = origin.get(stream)
            if begun is not None:
                ways.append(begun)
            for other in on.get(stream, ()):
                if other is op:
                    break
                if not isinstance(other, Fork | End) or other is begun:
                    ways.append(other)
        if isinstance(op, Join):
            ways.append(by_id[op.fork])
            for branch in op.branches:
                ways += _gathered(on.get(branch, ()), op)
    ends = [op for op in ops if isinstance(op, End) and origin[op.child].id in live]
    return live | {op.id for op in ends}


def _is_root(op: Operation) -> bool:
    if isinstance(op, Fork | Start):
        return False
    if isinstance(op, End):
        return op.awaited
    if isinstance(op, Apply):
        return not op.pure
    return 0 in op.streams or isinstance(op, Read) or has_effects(op)


def _content(op: Operation) -> frozenset[int]:
    """The streams whose content up to here it needs."""
    if isinstance(op, Fork | Join):
        return frozenset({op.stream})
    if isinstance(op, Start):
        return frozenset()
    if isinstance(op, Append):
        return frozenset({op.stream, op.of})
    if isinstance(op, End):
        return frozenset({op.child})
    return op.streams - {NO_STREAM}


def _gathered(ops: Sequence[Operation], join: Operation) -> list[Operation]:
    """Up to the last that sets a variable, everything of a branch."""
    before = ops[: ops.index(join)]
    last = 0
    for i, op in enumerate(before):
        sets = isinstance(op, Set) or (isinstance(op, Scope) and not op.begins) or (isinstance(op, CALLS) and op.name)
        if sets or op.regions or (isinstance(op, Join) and op.stream != NO_STREAM):
            last = i + 1
    if getattr(join, "mode", "") == "concate_and_append":
        last = len(before)
    return list(before[:last])
