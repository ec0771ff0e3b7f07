"""A graph as a flowchart in Mermaid's language (https://mermaid.js.org/syntax/flowchart.html)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lang.graph.expressions import results_in
from lang.graph.ops import (
    NO_STREAM,
    Apply,
    Cond,
    End,
    Fork,
    Gen,
    Join,
    Loop,
    Operation,
    Prefetch,
    Read,
    Role,
    Scope,
    Select,
    Set,
    Start,
)
from lang.graph.order import has_effects, predecessors
from lang.graph.saving import all_expressions
from lang.graph.words import answered_by, region_names, words

if TYPE_CHECKING:
    from lang.graph.graph import Graph

_LIMIT = 40
_SHAPES: dict[type[Operation], tuple[str, str]] = {
    Gen: ("([", "])"),
    Select: ("([", "])"),
    Read: ("[/", "/]"),
    Set: ("[\\", "\\]"),
    Apply: ("[[", "]]"),
    Cond: ("{", "}"),
    Loop: ("{{", "}}"),
    Fork: ("[/", "\\]"),
    Join: ("[\\", "/]"),
    Role: ("(", ")"),
    Scope: ("(", ")"),
    Start: ("(", ")"),
    End: ("(", ")"),
    Prefetch: (">", "]"),
}


def mermaid(graph: Graph) -> str:
    """One subgraph a stream, and one a branch or loop body. Arrows: order; dotted: the result goes there."""
    lines = ["flowchart TB", *_region(graph.ops, "  ", "top")]
    edges = list(_edges(graph.ops))
    known = {op.id for op in graph.every()}
    for op in graph.every():
        for needed in sorted(_results(op) & known):
            edges.append(f"n{needed} -.-> n{op.id}")
        for source in answered_by(op):
            if source in known:
                edges.append(f"n{source} -. same .-> n{op.id}")
    return "\n".join([*lines, *(f"  {edge}" for edge in edges)]) + "\n"


def _region(ops: Sequence[Operation], margin: str, name: str) -> Iterator[str]:
    streams: dict[int, list[Operation]] = {}
    for op in ops:
        streams.setdefault(_home(op), []).append(op)
    for stream, own in streams.items():
        title = "values" if stream == NO_STREAM else f"stream {stream}"
        yield f'{margin}subgraph {name}_s{stream if stream >= 0 else "v"}["{title}"]'
        for op in own:
            begin, end = _SHAPES.get(type(op), ("[", "]"))
            does, takes = words(op, _LIMIT)
            label = f"%{op.id} {does} {takes}".rstrip()
            yield f'{margin}  n{op.id}{begin}"{_escaped(_cut(label))}"{end}'
        yield f"{margin}end"
    for op in ops:
        for title, region in zip(region_names(op), op.regions):
            if region.ops:
                yield f'{margin}subgraph r{op.id}_{title}["{_escaped(f"%{op.id} {title}")}"]'
                yield from _region(region.ops, margin + "  ", f"r{op.id}_{title}")
                yield f"{margin}end"


def _edges(ops: Sequence[Operation]) -> Iterator[str]:
    """Of order, those within regions too."""
    by_id = {op.id: op for op in ops}
    for number, before in predecessors(ops).items():
        op = by_id[number]
        for other in sorted(before):
            if by_id[other].streams & op.streams or (has_effects(by_id[other]) and has_effects(op)):
                yield f"n{other} --> n{number}"
    for op in ops:
        for title, region in zip(region_names(op), op.regions):
            if region.ops:
                yield f"n{op.id} -->|{title}| n{region.ops[0].id}"
                yield from _edges(region.ops)


def _home(op: Operation) -> int:
    return op.child if isinstance(op, Start | End) else op.stream


def _results(op: Operation) -> set[int]:
    """Those that it takes itself."""
    return {number for expression in all_expressions(op) for number in results_in(expression)}


def _cut(text: str) -> str:
    return text if len(text) <= 2 * _LIMIT else text[: 2 * _LIMIT - 1] + "…"


def _escaped(text: str) -> str:
    """Whatever could mean something to Mermaid or HTML goes in as its number."""
    return re.sub(r"[^\w .,:()=/+!?'…-]", lambda found: f"#{ord(found[0])};", text)
