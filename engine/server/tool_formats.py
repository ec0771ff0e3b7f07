"""How a model is told about tools, and how it writes its calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from engine.constraints import Grammar, ToolChoice, tools
from engine.request import RequestError

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class Tool(NamedTuple):
    """What a client offers. Make one with `make_tool`."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of an object."""

    def as_data(self) -> dict[str, Any]:
        """As chat templates know it."""
        told = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": told}


def make_tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> Tool:
    """Raises RequestError for a name or a schema that can't be used. Without a schema the tool takes no arguments."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"the tool's name {name!r:.200} is not allowed: 1 to 128 letters, digits, dots, - and _")
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    if parameters.get("type", "object") != "object":
        raise RequestError(
            f"the arguments of the tool {name} have the type {parameters['type']!r:.80}: they must be an object"
        )
    return Tool(name, description or "", {"type": "object", **parameters})


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFormat:
    """A call is begin + before + "NAME" + between + arguments + after + end."""

    name: str
    begin: str
    before: str
    between: str
    after: str
    end: str
    call_id_length: int | None = None
    """Letters and digits in the id of a call, where the templates insist on a number."""

    def grammar(self, offered: Sequence[Tool], choice: ToolChoice, *, parallel: bool = True) -> Grammar:
        """Output in which every call is of an offered tool, with arguments that its schema accepts.

        To have one tool called, offer that one and let the choice be REQUIRED. Raises RequestError when a name is
        offered twice.
        """
        names = [tool.name for tool in offered]
        for name in names:
            if names.count(name) > 1:
                raise RequestError(f"the tool {name} is offered more than once: give each a name of its own")
        return tools(
            {tool.name: tool.parameters for tool in offered},
            begin=self.begin,
            end=self.end,
            choice=choice,
            parallel=parallel,
            before=self.before,
            between=self.between,
            after=self.after,
        )

    def write(self, name: str, arguments: Mapping[str, Any]) -> str:
        """A call as the model would write it."""
        written = json.dumps(arguments, ensure_ascii=False)
        return f"{self.begin}{self.before}{json.dumps(name)}{self.between}{written}{self.after}{self.end}"

    def describe(self, offered: Sequence[Tool]) -> str:
        """What a system message says about the tools where the chat template can't."""
        listed = "\n".join(json.dumps(tool.as_data(), ensure_ascii=False) for tool in offered)
        example = f"{self.begin}{self.before}NAME{self.between}ARGUMENTS{self.after}{self.end}"
        return (
            "You may call functions. Each is described by one line of JSON:\n"
            f"{listed}\n"
            "To call one, write its name as a JSON string for NAME and a JSON object for ARGUMENTS in\n"
            f"{example}"
        )


HERMES = ToolFormat(
    name="hermes",
    begin="<tool_call>\n",
    before='{"name": ',
    between=', "arguments": ',
    after="}",
    end="\n</tool_call>",
)
LLAMA3_JSON = ToolFormat(
    name="llama3_json",
    begin='{"name": ',
    before="",
    between=', "parameters": ',
    after="}",
    end="",
)
MISTRAL = ToolFormat(
    name="mistral",
    begin="[TOOL_CALLS] [",
    before='{"name": ',
    between=', "arguments": ',
    after="}",
    end="]",
    call_id_length=9,
)
TOOL_FORMATS = {known.name: known for known in (HERMES, LLAMA3_JSON, MISTRAL)}


def choose_tool_format(name: str | None, template: str) -> ToolFormat:
    """The one of that name; without a name, the one that the chat template's source shows, else hermes.

    Raises RequestError for a name that isn't known.
    """
    if name is not None:
        if name not in TOOL_FORMATS:
            raise RequestError(f"unknown tool format {name!r}; available: {', '.join(sorted(TOOL_FORMATS))}")
        return TOOL_FORMATS[name]
    if "[TOOL_CALLS]" in template:
        return MISTRAL
    if "<tool_call>" not in template and '"parameters": ' in template and "<|start_header_id|>" in template:
        return LLAMA3_JSON
    return HERMES
