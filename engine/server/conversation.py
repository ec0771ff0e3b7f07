"""What the chat endpoints share: from messages and tools to a prompt, a grammar, and a reader of the output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from engine.chat_template import ChatTemplate, Message, load_chat_template
from engine.constraints import Grammar, ToolChoice
from engine.server.config import ServerConfig
from engine.server.tool_calls import ToolCallParser
from engine.server.tool_formats import Tool, ToolFormat, choose_tool_format
from engine.tokenizer import Tokenizer

LONG_TEXT = 2_000
"""Characters; a longer chat is put into tokens in a thread."""


class ToolUse(NamedTuple):
    """What a request says about tools."""

    offered: Sequence[Tool] = ()
    choice: ToolChoice | None = ToolChoice.AUTO
    """None: no tool may be called."""
    only: str | None = None
    """The one tool that may be called."""
    parallel: bool = True
    """Several calls may follow one another."""

    @property
    def callable(self) -> Sequence[Tool]:
        if self.choice is None:
            return ()
        return self.offered if self.only is None else [tool for tool in self.offered if tool.name == self.only]


class Chat:
    """How the served model talks."""

    def __init__(self, template: ChatTemplate, tool_format: ToolFormat) -> None:
        self.template = template
        self.tool_format = tool_format

    @classmethod
    def of(cls, tokenizer: Tokenizer, config: ServerConfig) -> Chat:
        """Raises engine.chat_template.TemplateError, and RequestError for a tool format that isn't known."""
        template = load_chat_template(tokenizer, config.chat_template)
        return cls(template, choose_tool_format(config.tool_format, template.source))

    def describe(self) -> str:
        """One line for the log."""
        return f"chat template of {self.template.origin}, tool calls as {self.tool_format.name}"

    def encode(
        self, messages: Sequence[Message], use: ToolUse | None = None, *, continue_last: bool = False
    ) -> list[int]:
        """The prompt. Where the template doesn't know tools, they are described in the system message, calls stand in
        the assistant's text and results in the user's.

        Raises RequestError when the template refuses the messages.
        """
        offered = use.offered if use is not None else ()
        if self.template.knows_tools:
            tools = [tool.as_data() for tool in offered]
            return self.template.encode(messages, tools=tools, continue_last=continue_last)
        return self.template.encode(self._without_tools(messages, offered), continue_last=continue_last)

    async def encode_aside(
        self, messages: Sequence[Message], use: ToolUse | None = None, *, continue_last: bool = False
    ) -> list[int]:
        """`encode`, in a thread where the messages are long."""
        if sum(len(message.get("content") or "") for message in messages) <= LONG_TEXT:
            return self.encode(messages, use, continue_last=continue_last)
        return await asyncio.to_thread(self.encode, messages, use, continue_last=continue_last)

    def grammar(self, use: ToolUse) -> Grammar | None:
        """None where no tool may be called. Raises RequestError."""
        callable_tools = use.callable
        if use.choice is None or not callable_tools:
            return None
        return self.tool_format.grammar(callable_tools, use.choice, parallel=use.parallel)

    def parser(self, id_prefix: str = "call_") -> ToolCallParser:
        return ToolCallParser(self.tool_format, id_prefix)

    def _without_tools(self, messages: Sequence[Message], offered: Sequence[Tool]) -> list[Message]:
        told: list[dict[str, Any]] = []
        after_result = False
        for message in messages:
            text, role = message.get("content") or "", message["role"]
            if role == "assistant":
                calls = [call["function"] for call in message.get("tool_calls") or ()]
                written = [self.tool_format.write(call["name"], call["arguments"]) for call in calls]
                text = "\n".join([text, *written] if text else written)
            if role == "tool":
                text = f"<tool_response>\n{text}\n</tool_response>"
            if after_result and role in ("tool", "user"):  # templates want the roles to alternate
                told[-1]["content"] += "\n" + text
            else:
                told.append({"role": "user" if role == "tool" else role, "content": text})
            after_result = role == "tool"
        if offered:
            description = self.tool_format.describe(offered)
            if told and told[0]["role"] == "system":
                told[0]["content"] = f"{told[0]['content']}\n\n{description}"
            else:
                told.insert(0, {"role": "system", "content": description})
        return list(told)


def joined(texts: Iterable[str]) -> str:
    """The parts of one message as one text: each begins a line."""
    return "\n".join(texts)


def read_arguments(text: str) -> dict[str, Any] | None:
    """The arguments of an earlier call as templates want them; None for text that isn't a JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
