"""What of a graph has a form in JSON, and the schema of that form."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lang.graph.expressions import Constant, Expression, InMemory, inner
from lang.graph.ops import Gen, Loop, Operation

if TYPE_CHECKING:
    from lang.graph.graph import Graph


def check_savable(graph: Graph) -> None:
    """Raises GraphError for constants that JSON has no form for."""
    for name, default in graph.defaults.items():
        _check(graph, default, f"the default of argument {name!r}")
    for op in graph.every():
        for expression in all_expressions(op):
            _check(graph, expression, f"at {op.line}")
        if isinstance(op, Gen):
            for name, value in op.sampling.items():
                _check(graph, Constant.model_construct(value=value), f"{name} of the gen at {op.line}")
    _check(graph, graph.returns, "what it returns")


def all_expressions(op: Operation) -> tuple[Expression, ...]:
    """What it takes, the end of a loop too."""
    return (*op.expressions, op.until) if isinstance(op, Loop) else op.expressions


def _check(graph: Graph, expression: Expression, where: str) -> None:
    from lang.graph.graph import GraphError

    for problem in _problems(expression):
        raise GraphError(
            f"program {graph.program!r} can't be saved: {problem} ({where}); leave the argument that it comes from to "
            "the run, or use text, numbers, lists and dicts"
        )


def _problems(expression: Expression) -> Iterator[str]:
    match expression:
        case InMemory(value=value):
            yield f"{value!r:.60} isn't JSON"
        case str() | Constant():
            yield from _of_data(expression if isinstance(expression, str) else expression.value)
        case _:
            for part in inner(expression):
                yield from _problems(part)


def _of_data(value: Any) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{value!r} isn't JSON"
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= one <= "\udfff" for one in value):
        yield f"{value!r:.60} holds half a character, which isn't JSON"
    elif isinstance(value, list):
        for item in value:
            yield from _of_data(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _of_data(key)
            yield from _of_data(item)


_MEMORY = "#/$defs/InMemory"


def schema_of(graph: type[Graph]) -> dict[str, Any]:
    """The JSON schema of what is saved."""
    schema = json.loads(json.dumps(graph.model_json_schema(mode="serialization")))
    del schema["$defs"]["InMemory"]
    _only_savable(schema)
    for model in schema["$defs"].values():
        if "kind" in model.get("properties", {}):
            model["required"] = sorted({*model.get("required", ()), "kind"})
    schema["required"] = sorted({*schema["required"], "format"})
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _only_savable(node: Any) -> None:
    """Takes out what is never saved."""
    if isinstance(node, dict):
        if "oneOf" in node:
            node["oneOf"] = [one for one in node["oneOf"] if one.get("$ref") != _MEMORY]
            mapping = node["discriminator"]["mapping"]
            node["discriminator"]["mapping"] = {kind: to for kind, to in mapping.items() if to != _MEMORY}
        for value in node.values():
            _only_savable(value)
    elif isinstance(node, list):
        for value in node:
            _only_savable(value)
