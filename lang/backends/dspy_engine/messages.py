"""From a request's system text and messages to those that chat templates know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from engine.server.conversation import joined
from lang.backends.dspy_engine.errors import invalid, unsupported

Written = dict[str, Any]
"""See `engine.chat_template.Message`."""


def written(request: lm15.Request) -> list[Written]:
    """A developer's message is a system message. Raises dspy.lm15 errors for what can't be put into a prompt."""
    messages: list[Written] = []
    if isinstance(request.system, str):
        messages.append({"role": "system", "content": request.system})
    elif request.system is not None:
        messages.append({"role": "system", "content": _text(request.system, "system")})
    called: dict[str, str] = {}
    for i, message in enumerate(request.messages):
        where = f"messages[{i}].parts"
        match message.role:
            case "assistant":
                messages.append(_assistant(message.parts, where, called))
            case "tool":
                messages += _results(message.parts, where, called)
            case "developer":
                messages.append({"role": "system", "content": _text(message.parts, where)})
            case role:
                messages.append({"role": role, "content": _text(message.parts, where)})
    return messages


def _assistant(parts: Sequence[lm15.Part], where: str, called: dict[str, str]) -> Written:
    """called: names of the tools called so far, by the id of the call."""
    texts, calls = [], []
    for j, part in enumerate(parts):
        if isinstance(part, lm15.ToolCallPart):
            called[part.id] = part.name
            function = {"name": part.name, "arguments": dict(part.input)}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            texts.append(_one(part, f"{where}[{j}]"))
    message: Written = {"role": "assistant", "content": joined(texts)}
    if calls:
        message["tool_calls"] = calls
    return message


def _results(parts: Sequence[lm15.ToolResultPart], where: str, called: dict[str, str]) -> Iterator[Written]:
    for j, part in enumerate(parts):
        if part.id not in called:
            raise invalid(f"{where}[{j}].id: {part.id!r:.150} is the id of no call in a message before it")
        yield {
            "role": "tool",
            "tool_call_id": part.id,
            "name": called[part.id],
            "content": ("Error: " if part.is_error else "") + _text(part.content, f"{where}[{j}].content"),
        }


def _text(parts: Sequence[lm15.Part], where: str) -> str:
    return joined([_one(part, f"{where}[{j}]") for j, part in enumerate(parts)])


def _one(part: lm15.Part, where: str) -> str:
    match part:
        case lm15.TextPart() | lm15.RefusalPart():
            return str(part.text)
        case lm15.DataPart():
            return json.dumps(part.value, ensure_ascii=False)
        case lm15.ThinkingPart() | lm15.CitationPart():
            raise unsupported(where, f"chat templates have no place for a part of the type {part.type!r}; take it out")
    raise unsupported(where, f"the model takes text alone, no {part.type}; put into words what matters")
