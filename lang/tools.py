"""Functions that the model may ask to be called, and what it asks."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints

from lang.schema import schema_text

CHOICES = ("auto", "required", "none")


class Tool(NamedTuple):
    name: str
    description: str
    parameters: str
    """JSON text of a schema of an object."""

    def as_data(self) -> dict[str, Any]:
        """As OpenAI's API and chat templates know it."""
        told = {"name": self.name, "description": self.description, "parameters": json.loads(self.parameters)}
        return {"type": "function", "function": told}


class ToolCall(NamedTuple):
    id: str
    name: str
    arguments: dict[str, Any]


def tool_of(given: Tool | Mapping[str, Any] | type | Callable[..., Any]) -> Tool:
    """Of a Tool, OpenAI's dict (or its inner {"name", "description", "parameters"}), a pydantic model class, or a
    function with type hints: its docstring is the description. Raises TypeError for anything else.
    """
    if isinstance(given, Tool):
        return given
    if isinstance(given, Mapping):
        told = given.get("function", given)
        if not isinstance(told, Mapping) or not isinstance(told.get("name"), str):
            raise TypeError(f"the tool {given!r:.100} has no name: give {{'name', 'description', 'parameters'}}")
        parameters = told.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}
        return Tool(told["name"], told.get("description") or "", schema_text(parameters))
    if isinstance(given, type):
        return Tool(given.__name__, inspect.getdoc(given) or "", schema_text(given))
    if callable(given) and hasattr(given, "__name__"):
        return Tool(given.__name__, inspect.getdoc(given) or "", _parameters_of(given))
    raise TypeError(f"{given!r:.100} is no tool: give a function, a pydantic model class, a dict or a lang.Tool")


def _parameters_of(function: Callable[..., Any]) -> str:
    from pydantic import create_model

    hints = get_type_hints(function)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) or name not in hints:
            raise TypeError(f"the tool {function.__name__}: its argument {name!r} needs a name and a type hint")
        fields[name] = (hints[name], ... if parameter.default is parameter.empty else parameter.default)
    return schema_text(create_model(function.__name__, **fields))
