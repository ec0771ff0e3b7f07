"""The answer to a name nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown_name(what: str, given: str, available: Iterable[str]) -> str:
    """One line: what was given, the closest name there is, and all of them."""
    names = sorted(available)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {what} {given!r}; {hint}available: {', '.join(names) or 'none'}"
