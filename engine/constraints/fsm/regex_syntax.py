r"""The regexes of the finite-state machine: what is written, as a tree over sets of characters.

    a|b   ab   (a) (?:a) (?<name>a)   a* a+ a? a{2} a{2,} a{2,3}   .   [a-zé] [^a-z] [\w-]
    \d \w \s and \D \W \S, as Unicode defines them   \n \r \t \f \v \a   \x41 \x{e9} \u00e9 \U0001f600   \. \\ \[ ...

`^` at the start and `$` at the end are allowed and mean nothing, since the whole output must match; nor does a lazy
`*?`, which matches the same texts. What else Rust's `regex` has (flags, \p{...}, set operations in brackets) is refused
by name, so a pattern that is accepted means here what it means there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from engine.constraints.base import GrammarError
from engine.constraints.fsm.characters import ANY, DIGIT, NEWLINE, SPACE, WORD, Ranges, negated, united


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Concat:
    """Parts one after another; the empty text if there are none."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    options: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """`least` to `most` times; None: as often as you like."""

    item: Node
    least: int
    most: int | None


Node = Chars | Concat | Either | Repeat


def text_node(text: str) -> Node:
    """Exactly this text."""
    return Concat(tuple(Chars(((ord(char), ord(char)),)) for char in text))


def parse(pattern: str) -> Node:
    """Raises GrammarError with the position of what isn't allowed. How deep groups are nested is checked before."""
    return _Parser(pattern).pattern()


class _Escape(NamedTuple):
    ranges: Ranges
    is_class: bool
    """Stands for more than one character, so it can't end a range."""


_CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v", "a": "\a"}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_REFUSED_ESCAPES = {
    **dict.fromkeys("bBAzZ<>", "look-around (\\b, \\A, \\z, ...) is not supported"),
    **dict.fromkeys("pP", "\\p{...} is not supported: list the characters in brackets"),
    **dict.fromkeys("0123456789", "back-references are not supported; write a byte as \\x00"),
}
_REFUSED_GROUPS = (
    ("look-around", re.compile(r"\(\?(=|!|<=|<!)")),
    ("a reference to a group", re.compile(r"\(\?P[=>]")),
    ("a comment", re.compile(r"\(\?#")),
    ("a flag", re.compile(r"\(\?[a-zA-Z-]")),
)
_GROUP_START = re.compile(r"\(\?:|\(\?P?<[A-Za-z_][A-Za-z0-9_]*>|\((?!\?)")
_COUNT = re.compile(r"\{([0-9]{1,9})(,([0-9]{0,9}))?\}")
_MAX_STACKED = 64


class _Parser:
    """Recursive descent; `at` is where it stands."""

    def __init__(self, pattern: str) -> None:
        self.text = pattern
        self.at = 1 if pattern.startswith("^") else 0
        self.end = len(pattern) - self._ends_with_dollar()

    def pattern(self) -> Node:
        node = self._either()
        if self.at < self.end:
            raise self._error("`)` closes no group; write \\) for the character")
        return node

    def _ends_with_dollar(self) -> bool:
        before = self.text[:-1]
        return self.text.endswith("$") and (len(before) - len(before.rstrip("\\"))) % 2 == 0

    def _error(self, what: str, at: int | None = None) -> GrammarError:
        at = self.at if at is None else at
        return GrammarError(f"the regex {self.text!r:.200} can't be served: at position {at}, {what}")

    def _peek(self) -> str:
        return self.text[self.at] if self.at < self.end else ""

    def _either(self) -> Node:
        options = [self._sequence()]
        while self._peek() == "|":
            self.at += 1
            options.append(self._sequence())
        return options[0] if len(options) == 1 else Either(tuple(options))

    def _sequence(self) -> Node:
        parts = []
        while self._peek() not in ("", "|", ")"):
            parts.append(self._repeated())
        return parts[0] if len(parts) == 1 else Concat(tuple(parts))

    def _repeated(self) -> Node:
        begun = self.at
        node = self._atom()
        for _ in range(_MAX_STACKED + 1):
            count = self._count()
            if count is None:
                return node
            node = Repeat(node, *count)
        raise self._error(f"more than {_MAX_STACKED} repetitions of one another", begun)

    def _count(self) -> tuple[int, int | None] | None:
        sign = self._peek()
        if sign == "{":
            found = _COUNT.match(self.text, self.at, self.end)
            if found is None:
                raise self._error("a repetition is written {m}, {m,} or {m,n} with m and n at most 9 digits long")
            least = int(found[1])
            most = least if found[2] is None else int(found[3]) if found[3] else None
            if most is not None and most < least:
                raise self._error(f"{found[0]} ends before it begins")
            self.at = found.end()
        elif sign and sign in "*+?":
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
            self.at += 1
        else:
            return None
        if self._peek() == "?":  # lazy: the same texts match
            self.at += 1
        return least, most

    def _atom(self) -> Node:
        char = self._peek()
        if char == "(":
            return self._group()
        if char == "[":
            return Chars(self._brackets())
        if char == ".":
            self.at += 1
            return Chars(negated(NEWLINE))
        if char == "\\":
            return Chars(self._escape().ranges)
        if char in "*+?{":
            raise self._error(f"`{char}` repeats nothing; write \\{char} for the character")
        if char in "^$":
            raise self._error(f"`{char}` inside a pattern is look-around, which is not supported; write \\{char}")
        self.at += 1
        return Chars(_single(ord(char)))

    def _group(self) -> Node:
        begun = self.at
        start = _GROUP_START.match(self.text, self.at, self.end)
        if start is None:
            what = next((name for name, sign in _REFUSED_GROUPS if sign.match(self.text, self.at)), "this group")
            raise self._error(f"{what} is not supported")
        self.at = start.end()
        node = self._either()
        if self._peek() != ")":
            raise self._error("the group is never closed; write \\( for the character", begun)
        self.at += 1
        return node

    def _escape(self) -> _Escape:
        begun = self.at
        self.at += 2
        if self.at > self.end:
            raise self._error("a backslash ends the pattern; write \\\\ for the character", begun)
        char = self.text[begun + 1]
        if char.lower() in _CLASSES:
            ranges = _CLASSES[char.lower()]
            return _Escape(ranges if char.islower() else negated(ranges), True)
        if char in _CONTROLS:
            return _Escape(_single(ord(_CONTROLS[char])), False)
        if char in _HEX_DIGITS:
            return _Escape(_single(self._code_point(char, begun)), False)
        if char in _REFUSED_ESCAPES:
            raise self._error(_REFUSED_ESCAPES[char], begun)
        if char.isalnum() or not char.isascii():
            raise self._error(f"\\{char} means nothing here", begun)
        return _Escape(_single(ord(char)), False)

    def _code_point(self, kind: str, begun: int) -> int:
        digits = re.compile(rf"([0-9A-Fa-f]{{{_HEX_DIGITS[kind]}}})|\{{([0-9A-Fa-f]{{1,8}})\}}")
        found = digits.match(self.text, self.at, self.end)
        if found is None:
            raise self._error(f"\\{kind} is followed by {_HEX_DIGITS[kind]} hexadecimal digits, or by {{...}}", begun)
        code = int(found[1] or found[2], 16)
        if not any(first <= code <= last for first, last in ANY):
            raise self._error(f"{found[0]} is no character", begun)
        self.at = found.end()
        return code

    def _brackets(self) -> Ranges:
        begun = self.at
        self.at += 1
        negative = self._peek() == "^"
        self.at += negative
        found: list[Ranges] = []
        while not found or self._peek() != "]":
            if not self._peek():
                raise self._error("the bracket is never closed; write \\[ for the character", begun)
            found.append(self._bracket_item(is_first=not found))
        self.at += 1
        ranges = united(found)
        return negated(ranges) if negative else ranges

    def _bracket_item(self, *, is_first: bool) -> Ranges:
        if is_first and self._peek() == "]":  # a literal, and never the beginning of a range
            self.at += 1
            return _single(ord("]"))
        first = self._bracket_char()
        following = self.text[self.at + 1 : self.end][:1]
        if self._peek() != "-" or following in ("]", ""):
            return first.ranges
        start = self.at
        self.at += 1
        last = self._bracket_char()
        if first.is_class or last.is_class:
            raise self._error("a class like \\d can't begin or end a range; put a literal `-` last", start)
        low, high = first.ranges[0][0], last.ranges[0][0]
        if low > high:
            raise self._error(f"the range {chr(low)}-{chr(high)} ends before it begins", start)
        return united([((low, high),)])

    def _bracket_char(self) -> _Escape:
        char = self._peek()
        if char == "\\":
            return self._escape()
        if char == "[" or self.text[self.at : self.end].startswith(("&&", "--", "~~")):
            raise self._error("brackets in brackets and set operations (&&, --, ~~) are not supported; escape the sign")
        self.at += 1
        return _Escape(_single(ord(char)), False)


def _single(code: int) -> Ranges:
    return ((code, code),)
