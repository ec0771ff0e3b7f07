"""What an output must look like: a regex, a JSON schema, any JSON, a grammar, one of several texts, tool calls.

A `Grammar` is plain data: it can be hashed, logged and sent. Nothing is compiled here, and no library is loaded.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from engine.request import RequestError


class Kind(enum.StrEnum):
    REGEX = "regex"
    JSON_SCHEMA = "json_schema"
    JSON = "json"
    LARK = "lark"
    """llguidance's dialect of Lark."""
    EBNF = "ebnf"
    """GBNF, as llama.cpp and xgrammar write it: `root ::= ...`."""
    CHOICE = "choice"
    TOOLS = "tools"


class ToolChoice(enum.StrEnum):
    AUTO = "auto"
    """Free text, in which calls may stand."""
    REQUIRED = "required"
    """At least one call."""


@dataclass(frozen=True)
class Grammar:
    """Make one with the functions of this module."""

    kind: Kind
    text: str
    """regex: the pattern. json_schema, choice, tools: compact JSON (order kept: it is the order of the output).
    json: empty. lark, ebnf: the grammar."""
    head: str = ""
    """What the output says first, before anything that the grammar asks for: text of the prompt that token healing took
    back."""

    @cached_property
    def digest(self) -> str:
        """Names the content: equal for equal grammars."""
        return hashlib.sha256(f"{self.kind}\0{len(self.head)}\0{self.head}{self.text}".encode()).hexdigest()

    def after(self, head: str) -> Grammar:
        """The same grammar behind this text."""
        return replace(self, head=head)

    def as_data(self) -> dict[str, str]:
        return {"kind": self.kind.value, "text": self.text, **({"head": self.head} if self.head else {})}

    @classmethod
    def from_data(cls, data: Mapping[str, str]) -> Grammar:
        return cls(Kind(data["kind"]), data["text"], data.get("head", ""))


def regex(pattern: str) -> Grammar:
    """The whole output matches the pattern: syntax of Rust's `regex` crate, which has no look-around and no
    back-references."""
    return Grammar(Kind.REGEX, _text(pattern, "a regex"))


def json_schema(schema: Mapping[str, Any] | str | bool | type) -> Grammar:
    """The output is JSON that the schema accepts, properties in the schema's order.

    schema: a dict, its JSON text, or a pydantic model class, whose objects get no properties but the class's own
        (unless it says `extra="allow"`): a dict that doesn't say `"additionalProperties": false` allows any.
    """
    if isinstance(schema, type):
        make = getattr(schema, "model_json_schema", None)
        if make is None:
            raise RequestError(f"{schema.__name__} is no JSON schema: give a dict, JSON text or a pydantic model class")
        schema = _closed(make())
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError as error:
            raise RequestError(f"the JSON schema isn't JSON: {error}") from None
    if not isinstance(schema, Mapping | bool):
        raise RequestError(f"a JSON schema is an object or a boolean, not {type(schema).__name__}")
    return Grammar(Kind.JSON_SCHEMA, _compact(schema, "the JSON schema"))


def any_json() -> Grammar:
    """The output is one JSON object ("JSON mode")."""
    return Grammar(Kind.JSON, "")


def lark(grammar: str) -> Grammar:
    """A context-free grammar in llguidance's dialect of Lark, from the rule `start`."""
    return Grammar(Kind.LARK, _text(grammar, "a Lark grammar"))


def ebnf(grammar: str) -> Grammar:
    """A context-free grammar in GBNF, from the rule `root`."""
    return Grammar(Kind.EBNF, _text(grammar, "an EBNF grammar"))


def choices(texts: Sequence[str]) -> Grammar:
    """The output is one of these texts."""
    if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text for text in texts):
        raise RequestError(f"choices={texts!r:.80} is not allowed: it must be a list of texts that aren't empty")
    return Grammar(Kind.CHOICE, _compact(list(dict.fromkeys(texts)), "choices"))


def tools(
    parameters: Mapping[str, Mapping[str, Any]],
    *,
    begin: str,
    end: str,
    choice: ToolChoice = ToolChoice.AUTO,
    parallel: bool = True,
    before: str = '{"name": ',
    between: str = ', "arguments": ',
    after: str = "}",
) -> Grammar:
    """Calls of tools: each is begin + before + "NAME" + between + arguments + after + end.

    parameters: the JSON schema of each tool's arguments, by its name.
    begin, end: what encloses a call, e.g. `<tool_call>\\n` and `\\n</tool_call>`; `begin` may be empty only if the
        choice is REQUIRED.
    parallel: several calls may follow one another (if the choice is REQUIRED, with a line break between them at most).
    A schema without a `type` is taken to be an object's.
    """
    if not parameters:
        raise RequestError("tools is empty: give the schema of at least one tool")
    if not begin and choice is ToolChoice.AUTO:
        raise RequestError("tools with free text before a call need a `begin` that tells the two apart")
    data = {
        "tools": {name: dict(schema) for name, schema in parameters.items()},
        "choice": choice.value,
        "parallel": parallel,
        **{"begin": begin, "before": before, "between": between, "after": after, "end": end},
    }
    return Grammar(Kind.TOOLS, _compact(data, "tools"))


def _closed(schema: Any) -> Any:
    """The schema, every object in it closed that doesn't say otherwise."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {key: _closed(part) for key, part in schema.items()}
    if isinstance(parts.get("properties"), dict) and parts.get("type") == "object":
        parts.setdefault("additionalProperties", False)
    return parts


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{value!r:.80} is not {what}: give a text that isn't empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"{what} holds half a character at position {error.start}: give whole characters") from None
    return value


def _compact(value: Any, what: str) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"{what} can't be written as JSON: {error}") from None
    return text
