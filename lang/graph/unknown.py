"""What nobody knows of a value while a program is traced: Python's questions about it are refused, never answered."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from lang.abstract import Abstract, TraceError, at_line, is_authors


class Unknown(Abstract):
    """Refuses all that would need to look at the value; says what to do instead."""

    __slots__ = ()

    def __repr__(self) -> str:
        # debuggers and reports of tests may ask; a program would get a text that no run has
        if is_authors(sys._getframe(1).f_code.co_filename):
            self._needs("repr")
        return f"<{self._told()}, known when the program runs>"

    def _unknown(self, asked: str) -> NoReturn:
        raise TraceError(
            f"{at_line()}: {asked} of {self._told()} isn't known while the program is traced; {self._way()}"
        )

    def _needs(self, function: str) -> NoReturn:
        raise TraceError(
            f"{at_line()}: {self._told()} isn't known while the program is traced: use lang.apply({function}, value)"
        )

    def _refused(self, what: str) -> NoReturn:
        raise TraceError(f"{at_line()}: {what} isn't there while the program is traced; {self._way()}")

    def __bool__(self) -> NoReturn:
        raise TraceError(
            f"{at_line()}: whether {self._told()} is true isn't known while the program is traced: "
            f"use lang.cond(s, value, then, otherwise) or lang.loop(s, body, until=..., limit=...), or {self._way()}"
        )

    def __contains__(self, _: object) -> NoReturn:
        raise TraceError(
            f"{at_line()}: what is in {self._told()} isn't known while the program is traced: use "
            "lang.apply(operator.contains, value, part) in lang.cond(...)"
        )

    def __hash__(self) -> int:
        raise TraceError(
            f"{at_line()}: {self._told()} can't be looked up while the program is traced: use lang.switch(...), or "
            "lang.apply(function, value) with a function that looks it up"
        )

    def __len__(self) -> NoReturn:
        self._unknown("the length")

    def __iter__(self) -> Iterator[Any]:
        self._unknown("what is to be iterated over")

    def __reversed__(self) -> Iterator[Any]:
        self._unknown("what is to be iterated over")

    # ---- text and numbers made of it

    def __str__(self) -> NoReturn:
        self._unknown("the text")

    def __format__(self, _: str) -> NoReturn:
        raise TraceError(
            f"{at_line()}: {self._told()} isn't known while the program is traced, so that no string can hold it: add "
            "it to the prompt by itself (s += 'text' + value), or write the f-string in the program's own source"
        )

    def __bytes__(self) -> NoReturn:
        self._needs("bytes")

    def __int__(self) -> NoReturn:
        self._needs("int")

    def __float__(self) -> NoReturn:
        self._needs("float")

    def __complex__(self) -> NoReturn:
        self._needs("complex")

    def __round__(self, _: Any = None) -> NoReturn:
        self._needs("round")

    def __abs__(self) -> NoReturn:
        self._needs("abs")

    def __index__(self) -> NoReturn:
        self._unknown("the number")

    # ---- what would change it, or run it

    def __setitem__(self, _: Any, __: Any) -> NoReturn:
        self._refused(f"what would be set in {self._told()}")

    def __delitem__(self, _: Any) -> NoReturn:
        self._refused(f"what would be taken out of {self._told()}")

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        self._refused(f"what would be called, {self._told()},")

    def __enter__(self) -> NoReturn:
        self._refused(f"what would be entered, {self._told()},")

    def __exit__(self, *_: object) -> None:
        """Never comes: nothing was entered."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in type(self).__slots__:
            self._refused(f"{name!r} of {self._told()}")
        object.__setattr__(self, name, value)
