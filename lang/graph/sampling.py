"""Sampling values of a call as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from lang.sampling import overrides


def as_json(sampling: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Of values in canonical form (`overrides`)."""
    values: dict[str, JsonValue] = {}
    for name, value in sampling.items():
        if name == "tools":
            values[name] = [
                {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
                for tool in value
            ]
        else:
            values[name] = list(value) if isinstance(value, tuple) else value
    return values


def from_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """In canonical form. Raises TypeError or ValueError for values that no gen takes."""
    return overrides(values)
