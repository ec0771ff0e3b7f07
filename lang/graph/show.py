"""A graph as text, one operation a line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lang.graph.ops import NO_STREAM, Operation
from lang.graph.words import line_of, plain, region_names, shown, words

if TYPE_CHECKING:
    from lang.graph.graph import Graph

_WIDTH = 88


def listing(graph: Graph) -> str:
    """Number, stream, what it does, what it takes, and the program's line. Regions are indented."""
    arguments = [
        plain(name) + (f"={shown(graph.defaults[name])}" if name in graph.defaults else "") for name in graph.arguments
    ]
    lines = [f"program {plain(graph.program)}({', '.join(arguments)})", *_lines(graph.ops, 1)]
    return "\n".join([*lines, f"  return {shown(graph.returns)}"])


def _lines(ops: Iterable[Operation], depth: int) -> Iterator[str]:
    margin = "  " * depth
    for op in ops:
        does, takes = words(op)
        stream = "" if op.stream == NO_STREAM else f"s{op.stream}"
        text = f"{margin}{f'%{op.id}':<4} {stream:<3} {does} {takes}".rstrip()
        yield f"{text:<{_WIDTH}}  # {line_of(op)}" if op.line else text
        for name, region in zip(region_names(op), op.regions):
            if region.ops:
                yield f"{margin}  {name}:"
                yield from _lines(region.ops, depth + 2)
