"""What stands for a value while a program is traced: it can be written and passed on, not looked at."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

_HERE = os.path.dirname(__file__) + os.sep
_PYTHON = os.path.dirname(os.__file__) + os.sep


class TraceError(TypeError):
    """The program does something that can't stand in a graph. The message names its line and says what to do."""


class Abstract:
    """Base of the values of a trace. A program that asks what is in one is told so, never given a guess."""

    __slots__ = ()

    def _told(self) -> str:
        """What it stands for, in words."""
        raise NotImplementedError

    @property
    def __class__(self) -> Any:
        """isinstance(...) asks for it: nobody knows before the program runs."""
        raise TraceError(
            f"{at_line()}: the type of {self._told()} isn't known while the program is traced; {self._way()}"
        )

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise TypeError("the class of a traced value can't be set")

    def _way(self) -> str:
        return "use lang.apply(function, value) for what needs it"


def is_abstract(value: object) -> bool:
    return issubclass(type(value), Abstract)


def at_line() -> str:
    """path:line of the program, outside of this package."""
    path, line = caller()
    return f"{path}:{line}"


def caller() -> tuple[str, int]:
    """The line that is being executed, outside of this package and of Python's own library: `with s.user():` comes by
    way of contextlib."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_ours_or_pythons(frame.f_code.co_filename):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


@functools.lru_cache(maxsize=1024)
def _is_ours_or_pythons(path: str) -> bool:
    return path.startswith(_HERE) or (path.startswith(_PYTHON) and "site-packages" not in path)


@functools.lru_cache(maxsize=1024)
def is_authors(path: str) -> bool:
    """A file of programs: not Python's, an installed package's, or one of this package."""
    return not path.startswith((_HERE, _PYTHON)) and "site-packages" not in path
