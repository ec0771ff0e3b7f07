"""What a trace knows of the variables of a state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lang.graph.values import has_abstract

TEXT: Literal["text"] = "text"
DATA: Literal["data"] = "data"
"""Something, of a kind that is known only when the program runs."""


class Listed(NamedTuple):
    """A list of so many."""

    kinds: tuple[Known, ...]


class Held(NamedTuple):
    """What the program itself put there: it is read as it is."""

    value: Any


Known = Literal["text", "data"] | Listed | Held


def merged(a: Known, b: Known) -> Known:
    """Of a variable that is one or the other."""
    if isinstance(a, Held) and isinstance(b, Held) and a.value is b.value:
        return a
    kinds = {_plain(a), _plain(b)}
    return kinds.pop() if len(kinds) == 1 else DATA


def _plain(kind: Known) -> Known:
    if isinstance(kind, Held):
        return TEXT if type(kind.value) is str or getattr(kind.value, "is_text", False) is True else DATA
    return kind


@dataclass
class Names:
    """Variables that are there, and those that may be."""

    sure: dict[str, Known] = field(default_factory=dict)
    maybe: dict[str, Known] = field(default_factory=dict)
    """Set in a branch, or in an earlier round."""
    written: set[str] = field(default_factory=set)
    """Set since the trace, or the loop that is being traced, began."""

    def copy(self) -> Names:
        return Names(dict(self.sure), dict(self.maybe), set(self.written))

    def put(self, name: str, kind: Known) -> None:
        self.maybe.pop(name, None)
        self.sure[name] = kind
        self.written.add(name)

    def after_either(self, a: Names, b: Names) -> Names:
        """Of the state after one of two branches."""
        names = self.copy()
        for name in dict.fromkeys([*a.sure, *b.sure, *a.maybe, *b.maybe]):
            found = [branch.sure.get(name, branch.maybe.get(name)) for branch in (a, b)]
            kinds = [kind for kind in found if kind is not None]
            kind = _plain(kinds[0]) if len(kinds) == 1 else merged(*kinds)
            if name in a.sure and name in b.sure:
                names.sure[name] = kind
                names.maybe.pop(name, None)
            else:
                names.sure.pop(name, None)
                names.maybe[name] = kind
        names.written |= a.written | b.written
        return names

    def varying(self, after: Names) -> Names:
        """Of the state at the beginning of a round, when a round leaves it as `after`."""
        names = self.copy()
        for name in after.written:
            kind = after.sure.get(name, after.maybe.get(name, DATA))
            if name in names.sure:
                names.sure[name] = _plain(merged(names.sure[name], kind))
            else:
                names.maybe[name] = _plain(kind)
        return names

    def after_loop(self) -> None:
        """Values that the last round put there are read from the state: outside of the loop there are no others."""
        for name in self.written & self.sure.keys():
            kind = self.sure[name]
            if isinstance(kind, Held) and has_abstract(kind.value):
                self.sure[name] = _plain(kind)
