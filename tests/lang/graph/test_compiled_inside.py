"""Programs that call compiled ones, as they stand and traced."""

from __future__ import annotations

from typing import Any

import lang as sgl
from lang.backends.mock import MockBackend
from lang.graph.ops import Start


@sgl.function
def inner(s: Any, x: Any, y: Any = "!") -> Any:
    s += f"<{x}{y}>" + sgl.gen("a")
    return s["a"]


def test_a_compiled_program_becomes_part_of_the_graph_of_one_that_calls_it() -> None:
    compiled = inner.compile(y="?")

    @sgl.function
    def outer(s: Any, x: Any) -> None:
        called = compiled(x)
        s += called
        s += called["a"]
        compiled(s, "here")

    graph = outer.trace()
    assert sum(isinstance(op, Start) for op in graph.every()) == 1
    assert len(graph.calls) == 2
    for program in (outer, graph.as_program(), outer.compile()):
        assert program.run("X", backend=MockBackend()).text() == "<X?>okok<here?>ok"
