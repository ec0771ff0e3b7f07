"""Whether an output is what was asked for: a value that a schema accepts, calls that are right."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

HAS_JSONSCHEMA = importlib.util.find_spec("jsonschema") is not None
_IGNORED = re.compile(r"[ ,./\-_*^]")
"""Of texts that are compared, as BFCL does."""


class RightCall(NamedTuple):
    """A call that is expected (BFCL's possible answers)."""

    name: str
    allowed: Mapping[str, Sequence[Any]]
    """Argument -> the values that are right; "" among them: it may be missing."""


def accepts(schema_text: str, said: str) -> bool:
    """Whether the schema accepts what was said, by `jsonschema` where it is installed (HAS_JSONSCHEMA); else whether it
    is JSON."""
    try:
        value = json.loads(said)
    except ValueError:
        return False
    if not HAS_JSONSCHEMA:
        return True
    from jsonschema.validators import validator_for

    schema = json.loads(schema_text)
    return bool(validator_for(schema)(schema).is_valid(value))


def right_calls(calls: Sequence[Any], expected: Sequence[RightCall]) -> bool:
    """Each expected call is made once, in any order, and no other. calls: of `lang.tools.ToolCall`.

    BFCL's check takes for each call the first expected one that fits, which may be another's only one; here it is
    enough that there is a way to pair them.
    """
    if len(calls) != len(expected):
        return False
    if not calls:
        return True
    return any(
        right_call(calls[0], one) and right_calls(calls[1:], (*expected[:i], *expected[i + 1 :]))
        for i, one in enumerate(expected)
    )


def right_call(call: Any, expected: RightCall) -> bool:
    """BFCL's rule: the function's name, every argument one of the allowed values, none that isn't known, and only those
    missing that may be."""
    return bool(call.name == expected.name) and _right_arguments(call.arguments, expected.allowed)


def _right_arguments(said: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]]) -> bool:
    if any(argument not in allowed for argument in said):
        return False
    return all(
        any(same_value(said[argument], value) for value in values) if argument in said else "" in values
        for argument, values in allowed.items()
    )


def same_value(said: Any, right: Any) -> bool:
    """Texts without regard to case, spaces and , . / - _ * ^; 2.0 is 2; true is not 1; in objects each key has a list
    of values that are right (so BFCL writes them)."""
    if isinstance(said, bool) or isinstance(right, bool):
        return said is right
    if isinstance(said, str) and isinstance(right, str):
        return _plain(said) == _plain(right)
    if isinstance(said, list) and isinstance(right, list):
        return len(said) == len(right) and all(map(same_value, said, right))
    if isinstance(said, dict) and isinstance(right, dict):
        return _right_arguments(said, right)
    return bool(said == right)


def _plain(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')
