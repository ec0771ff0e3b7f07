"""How outputs of a Python type are written: SGLang's regular expressions."""

from __future__ import annotations

from typing import NamedTuple

from lang.sampling import closest


class Written(NamedTuple):
    pattern: str
    stop: tuple[str, ...] = ()
    """What ends it. A model goes on after a number with a space, not with the end of its output."""


_OF = {
    "int": Written(r"[-+]?[0-9]+[ \n]*", (" ", "\n")),
    "float": Written(r"[-+]?[0-9]*\.?[0-9]+[ \n]*", (" ", "\n")),
    "bool": Written(r"(True|False)"),
    "str": Written(r"\"[\w\d\s]*\""),
}


def pattern_of(dtype: type | str) -> Written:
    """Of int, float, bool or str, or their names. Raises TypeError for any other."""
    name = dtype if isinstance(dtype, str) else getattr(dtype, "__name__", repr(dtype))
    if name not in _OF:
        near = closest(name, _OF)
        raise TypeError(f"dtype={dtype!r} isn't served{near} allowed: int, float, bool, str; or give json_schema=...")
    return _OF[name]
