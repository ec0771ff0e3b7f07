"""Programs whose outputs are held to a shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lang
from workloads.json_decode.patterns import FIELDS


def page_prompt(page: str) -> str:
    return f"Here is an encyclopedia's page about a city.\n{page}\nThe city as JSON:\n"


def schema_prompt(json_schema: str) -> str:
    return f"Write a JSON value that this JSON schema accepts.\nSchema: {json_schema}\nJSON: "


@lang.function
def fields(s: lang.ProgramState, page: str) -> None:
    """The launch version: a call for each field, with its own regex."""
    s += page_prompt(page) + "{\n"
    for field in FIELDS:
        s += f'  "{field.name}": '
        s += lang.gen(field.name, max_tokens=field.max_tokens, temperature=0, regex=field.pattern)
        s += "\n"
    s += "}\n"


@lang.function
def record(s: lang.ProgramState, prompt: str, pattern: str, max_tokens: int) -> None:
    """The paper's version: one regex for the whole record."""
    s += prompt
    s += lang.gen("record", max_tokens=max_tokens, temperature=0, regex=pattern)


@lang.function
def schema(s: lang.ProgramState, json_schema: str, max_tokens: int, instance: str) -> None:
    """instance: the recorded output."""
    s += schema_prompt(json_schema)
    s += lang.gen("value", max_tokens=max_tokens, temperature=0, json_schema=json_schema, recorded=instance)


@lang.function
def function_call(s: lang.ProgramState, question: str, system: str, tools: Sequence[Any], max_tokens: int) -> Any:
    """The tools are described in the system message, as the model's format has it."""
    if system:
        s += lang.system(system)
    s += lang.user(question)
    call = lang.gen("call", max_tokens=max_tokens, temperature=0, tools=tools, tool_choice="required")
    s += lang.assistant(call)
    return s.tool_calls("call")
