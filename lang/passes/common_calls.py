"""Common sub-expressions: what is asked after the same prompt in the same way is asked once.

Whether two calls get the same output is known only when the program runs (greedy, or with a seed): the graph says which
call may answer which, and the executor decides.
"""

from __future__ import annotations

import json
from typing import Any

from lang.graph.graph import Graph
from lang.graph.ops import CALLS, Gen, Operation, Select
from lang.passes.base import Notes, Pass
from lang.passes.prompts import OUTPUT, Part, Parts, Prompts, joined, named
from lang.passes.rewrite import each_operation


def common_calls() -> Pass:
    """Calls with equal prompts and equal sampling get one answer, where outputs repeat."""
    return Pass("common_calls", _change)


def _change(graph: Graph, notes: Notes) -> Graph:
    known = Prompts(graph)
    first: dict[Any, int] = {}
    same: dict[int, int] = {}
    lines = {op.id: op for op in graph.every() if isinstance(op, CALLS)}

    def look(op: Operation) -> Operation:
        if not isinstance(op, CALLS) or op.same_as is not None:
            return op
        parts, given = _of_first(known.before[op.id], same)
        key = (known.region[op.id], parts, asked(op, known))
        earlier = first.setdefault(key, op.id)
        if earlier == op.id:
            return op
        same[op.id] = earlier
        notes.changes.append(f"{named(op)} is answered by {named(lines[earlier])} where outputs repeat")
        return op.model_copy(update={"same_as": earlier, "same_if": given})

    return each_operation(graph, look)


def asked(op: Gen | Select, known: Prompts) -> Any:
    """What is asked of the model, whatever the variable is called."""
    if isinstance(op, Gen):
        return ("gen", json.dumps(dict(op.sampling), sort_keys=True), op.text)
    return ("select", tuple(map(known.part, op.choices)), op.method, op.how)


def _of_first(parts: Parts, same: dict[int, int]) -> tuple[Parts, tuple[int, ...]]:
    """The prompt, with the outputs of those that answer for others; and which others that were."""
    given: list[int] = []

    def change(part: Part) -> Part:
        if isinstance(part, str):
            return part
        if part[0] == OUTPUT and part[1] in same:
            given.append(part[1])
            return (OUTPUT, same[part[1]])
        return tuple(change(one) if isinstance(one, tuple) else one for one in part)

    return joined(map(change, parts)), tuple(dict.fromkeys(given))
