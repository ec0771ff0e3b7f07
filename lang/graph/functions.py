"""Python functions that a graph applies to values, and their names in it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from lang.abstract import TraceError

_OPERATORS = ("eq", "ne", "lt", "le", "gt", "ge", "getitem", "add", "sub", "mul", "mod", "neg", "not_", "contains")


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    return value[start:stop:step]


BUILTIN: Mapping[str, Callable[..., Any]] = {
    **{f"operator.{name}": getattr(operator, name) for name in _OPERATORS},
    **{f"str.{name}": getattr(str, name) for name in dir(str) if not name.startswith("_")},
    "lang.slice": _slice,
    **{f"builtins.{kind.__name__}": kind for kind in (int, float, len, str, bool)},
}
"""What any graph may apply: it changes nothing and reaches nothing."""
_NAMES = {id(function): name for name, function in BUILTIN.items()}


def path_of(function: Callable[..., Any]) -> str:
    """Its name in a graph. Raises TraceError for what has none."""
    known = _NAMES.get(id(function))
    if known is not None:
        return known
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not callable(function) or module is None or name is None:
        raise TraceError(f"{function!r:.80} is no function with a name: give a function, made with def")
    return f"{module}:{name}"
