"""The answer to a name nobody knows."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(given: str, allowed: Iterable[str]) -> str:
    """'; did you mean 'x'?' where something allowed is close, else an empty string."""
    match = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""


def unknown_name(what: str, given: str, available: Iterable[str]) -> str:
    """One line: what was given, the closest name there is, and all of them."""
    names = sorted(available)
    return f"unknown {what} {given!r}{closest(given, names) or ';'} available: {', '.join(names) or 'none'}"
