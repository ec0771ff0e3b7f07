"""What a function can change outside of the state: a branch or a loop that does has no place in a graph.

Looked at: the variables of the functions around it, the globals and defaults that it uses, in functions that it calls
too; in lists, sets, dicts and the attributes of objects. Not seen: what C code keeps, or files and the like.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

from lang.abstract import is_abstract, is_authors

_DEPTH = 3
"""Levels of containers in containers, and of functions that call functions."""
_MOST = 1000
"""Items of a container that are looked into; of a larger one only what it holds itself."""


def held_by(function: Callable[..., Any] | None) -> dict[str, Any]:
    """By the names that the functions have for it."""
    held: dict[str, Any] = {}
    if function is not None:
        _add(function, held, set(), _DEPTH)
    return held


def same(a: Any, b: Any) -> bool:
    """Two of `held_by` at one name."""
    if type(a) is _Content and type(b) is _Content:
        return a.of is b.of and len(a.items) == len(b.items) and all(map(same, a.items, b.items))
    return a is b


class _Content:
    """Of a container, at one time."""

    __slots__ = ("items", "of")

    def __init__(self, of: Any, items: list[Any]) -> None:
        self.of, self.items = of, items


def _add(function: Any, held: dict[str, Any], seen: set[int], depth: int) -> None:
    if type(function) is types.MethodType:
        held.setdefault("self", _content(function.__self__, _DEPTH))
        function = function.__func__
    if type(function) is not types.FunctionType or id(function) in seen:
        return
    seen.add(id(function))
    for name, value in _variables(function):
        held.setdefault(name, _content(value, _DEPTH))
        if depth and type(value) is types.FunctionType and is_authors(value.__code__.co_filename):
            _add(value, held, seen, depth - 1)


def _variables(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or ()):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            continue
    for name in code.co_names:
        if name in function.__globals__:
            yield name, function.__globals__[name]
    named = code.co_varnames[: code.co_argcount]
    yield from zip(reversed(named), reversed(function.__defaults__ or ()))
    yield from (function.__kwdefaults__ or {}).items()


def _content(value: Any, depth: int) -> Any:
    """What is compared later: values as they are, containers by what they hold now."""
    kind = type(value)
    if is_abstract(value) or not depth:
        return value
    if kind in (list, tuple):
        items = list(value)
    elif issubclass(kind, set):
        return _Content(value, sorted(value, key=id))
    elif issubclass(kind, dict):
        items = [*value.keys(), *value.values()]
    elif _is_an_authors(kind):
        items = [one for pair in vars(value).items() for one in pair]
    else:
        return value
    return _Content(value, items if len(items) > _MOST else [_content(item, depth - 1) for item in items])


def _is_an_authors(kind: type) -> bool:
    """A class of the program's author, whose objects have attributes."""
    if not kind.__dictoffset__ or issubclass(kind, type | types.ModuleType | types.FunctionType):
        return False
    init = vars(kind).get("__init__") or next((one for one in vars(kind).values() if hasattr(one, "__code__")), None)
    code = getattr(init, "__code__", None)
    return code is not None and is_authors(code.co_filename)
