"""Calls of tools in a model's output: text pieces in, content and calls out, as they come."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from engine.server.tool_formats import ToolFormat

_LONGEST_NAME = 200
"""Characters of a tool's name as a JSON string; what is longer is no call."""


class Content(NamedTuple):
    """Text that is no call. White space that only sets calls apart is left out."""

    text: str


class CallStart(NamedTuple):
    call: int
    """0 for the first call of the output."""
    id: str
    name: str


class CallArguments(NamedTuple):
    call: int
    text: str
    """A piece of the arguments' JSON text. The pieces of a call, joined, are one JSON object unless the output was
    cut off inside it."""


class CallEnd(NamedTuple):
    call: int
    complete: bool
    """False: the output was cut off inside the arguments."""


Event: TypeAlias = Content | CallStart | CallArguments | CallEnd


def new_call_id(tool_format: ToolFormat, prefix: str = "call_") -> str:
    """Names one call. Where the format counts the characters of an id, it has no prefix."""
    if tool_format.call_id_length is None:
        return prefix + secrets.token_hex(12)
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(tool_format.call_id_length))


class ToolCallParser:
    """Reads one output of a model that was told about tools in `tool_format`.

    What comes out is the same, pieces joined, however the text is cut. Text that begins like a call and goes on
    otherwise is content; a grammar of the same format (`ToolFormat.grammar`) keeps that from happening.
    """

    def __init__(self, tool_format: ToolFormat, id_prefix: str = "call_") -> None:
        self._format = tool_format
        self._id_prefix = id_prefix
        self._held = ""
        """Text that isn't reported yet: what follows decides what it is."""
        self._read: Callable[[list[Event]], bool] = self._text
        """Takes what it can from the held text; False when it needs more."""
        self._value = _Object()
        self._said = False
        """Content came after the last call."""
        self.n_calls = 0
        """Calls begun so far."""

    def push(self, text: str) -> list[Event]:
        """What is certain now."""
        self._held += text
        events: list[Event] = []
        while self._held and self._read(events):
            pass
        return events

    def finish(self) -> list[Event]:
        """The rest. The output is over."""
        events: list[Event] = []
        if self._read == self._text or self._read == self._opening:
            self._say(self._held, events)
        else:
            events.append(CallEnd(self.n_calls - 1, complete=self._read == self._closing))
        self._held = ""
        return events

    def _text(self, events: list[Event]) -> bool:
        begin = self._format.begin
        at = self._held.find(begin)
        found = at >= 0
        if not found:
            at = len(self._held) - _overlap(self._held, begin)
        said = self._held[:at].rstrip()
        self._say(said, events)
        self._held = self._held[len(said) :]
        if found:
            self._read = self._opening
        return found

    def _opening(self, events: list[Event]) -> bool:
        """All that stands before the arguments, after white space: begin, before, the name, between."""
        start = len(self._held) - len(self._held.lstrip())
        rest = self._held[start:]
        opening, between = self._format.begin + self._format.before, self._format.between
        if len(rest) <= len(opening):
            return False if opening.startswith(rest) else self._no_call(start, events)
        if not rest.startswith(opening):
            return self._no_call(start, events)
        name_end = _string_end(rest, len(opening))
        if name_end is None:
            too_long = len(rest) > len(opening) + _LONGEST_NAME
            return self._no_call(start, events) if too_long else False
        name = _string_value(rest[len(opening) : name_end])
        follows = rest[name_end : name_end + len(between) + 1]
        if name is None or not (between + "{").startswith(follows):
            return self._no_call(start, events)
        if len(follows) <= len(between):
            return False
        events.append(CallStart(self.n_calls, new_call_id(self._format, self._id_prefix), name))
        self.n_calls += 1
        self._said = False
        self._held = rest[name_end + len(between) :]
        self._value = _Object()
        self._read = self._arguments
        return True

    def _no_call(self, start: int, events: list[Event]) -> bool:
        """What looked like the beginning of a call is content: its first character for certain, the rest is read
        again."""
        self._say(self._held[: start + 1], events)
        self._held = self._held[start + 1 :]
        self._read = self._text
        return True

    def _arguments(self, events: list[Event]) -> bool:
        end = self._value.end(self._held)
        taken = self._held if end is None else self._held[:end]
        events.append(CallArguments(self.n_calls - 1, taken))
        self._held = self._held[len(taken) :]
        if end is not None:
            self._read = self._closing
        return end is not None

    def _closing(self, events: list[Event]) -> bool:
        closing = self._format.after + self._format.end
        head = self._held[: len(closing)]
        if head != closing and closing.startswith(head):
            return False
        if head == closing:
            self._held = self._held[len(closing) :]
        events.append(CallEnd(self.n_calls - 1, complete=True))
        self._read = self._text
        return True

    def _say(self, text: str, events: list[Event]) -> None:
        if self.n_calls and not self._said:
            text = text.lstrip()
        if text:
            self._said = True
            events.append(Content(text))


class _Object:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, piece: str) -> int | None:
        """Where in the piece the object ends (after its bracket), None if it goes on."""
        for i, char in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return i + 1
        return None


def _overlap(text: str, begin: str) -> int:
    """Length of the longest end of `text` that is the beginning, but not the whole, of `begin`."""
    for n in range(min(len(text), len(begin) - 1), 0, -1):
        if begin.startswith(text[-n:]):
            return n
    return 0


def _string_end(text: str, start: int) -> int | None:
    """Where the JSON string that begins at `start` ends; `start` itself if none begins there, None if it goes on."""
    if text[start] != '"':
        return start
    at = start + 1
    while at < len(text):
        if text[at] == '"':
            return at + 1
        at += 2 if text[at] == "\\" else 1
    return None


def _string_value(text: str) -> str | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
