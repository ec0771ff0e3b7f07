"""JSON schemas as programs give them: a dict, JSON text or a pydantic model class."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def schema_text(schema: Mapping[str, Any] | str | type) -> str:
    """The schema as JSON text, its properties in their order.

    Objects of a pydantic class get no properties but the class's own, unless it says `extra="allow"`. Raises TypeError
    or ValueError for what is no schema.
    """
    if isinstance(schema, str):
        try:
            read = json.loads(schema)
        except ValueError as error:
            raise ValueError(f"the JSON schema isn't JSON: {error}") from None
        if not isinstance(read, dict):
            raise TypeError(f"a JSON schema is an object, not {schema!r:.60}")
        return schema
    if isinstance(schema, type):
        make = getattr(schema, "model_json_schema", None)
        if make is None:
            raise TypeError(f"{schema.__name__} is no JSON schema: give a dict, JSON text or a pydantic model class")
        schema = _closed(make())
    if not isinstance(schema, Mapping):
        raise TypeError(f"{schema!r:.60} is no JSON schema: give a dict, JSON text or a pydantic model class")
    return json.dumps(schema, ensure_ascii=False)


def _closed(schema: Any) -> Any:
    """Every object in it closed that doesn't say otherwise."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _closed(part) for key, part in schema.items()}
    if isinstance(parts.get("properties"), dict) and parts.get("type") == "object":
        parts.setdefault("additionalProperties", False)
    return parts
