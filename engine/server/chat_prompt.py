"""From OpenAI's messages and tools to a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from engine.chat_template import IMAGE
from engine.request import RequestError
from engine.server.chat_models import (
    AssistantMessage,
    FunctionTool,
    ImagePart,
    Message,
    RefusalPart,
    TextPart,
    ToolMessage,
)
from engine.server.conversation import ToolUse, joined, read_arguments
from engine.server.errors import ApiError, unsupported
from engine.server.images import ChatPrompt, ImageLimits, check_count, read_image
from engine.server.sampling import bad_request
from engine.server.state import ServerState
from engine.server.tool_formats import Tool, make_tool


async def encode_chat(state: ServerState, messages: Sequence[Message], use: ToolUse) -> ChatPrompt:
    """The prompt's token ids, and the images in it. Raises ApiError (400) for what can't be put into one."""
    images = await _images(messages, ImageLimits.of(state.config), sees=bool(state.service.engine.image_tokens))
    try:
        return ChatPrompt(await state.chat.encode_aside(_written(messages), use), images)
    except RequestError as error:
        raise bad_request(error, "messages") from None


async def _images(messages: Sequence[Message], limits: ImageLimits, *, sees: bool) -> list[Image]:
    """A bad image is told as such; a good one, that the model can't see, if it can't."""
    found = [
        (f"messages.{i}.content.{j}.image_url", part.image_url.url)
        for i, message in enumerate(messages)
        for j, part in enumerate(message.content if isinstance(message.content, list) else ())
        if isinstance(part, ImagePart)
    ]
    check_count(len(found), limits)
    images = [(await asyncio.to_thread(read_image, url, limits, param=param)).pixels for param, url in found]
    if found and not sees:
        raise unsupported(found[0][0], "the model takes no images; send text alone")
    return images


def read_tools(tools: Sequence[FunctionTool]) -> list[Tool]:
    """Raises ApiError for a name or a schema that can't be used."""
    read = []
    for i, tool in enumerate(tools):
        told = tool.function
        try:
            read.append(make_tool(told.name, told.description, told.parameters))
        except RequestError as error:
            raise bad_request(error, f"tools.{i}.function") from None
    return read


def _written(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As templates know them (see `engine.chat_template`)."""
    called: dict[str, str] = {}
    written = []
    for i, message in enumerate(messages):
        role = "system" if message.role == "developer" else message.role
        data: dict[str, Any] = {"role": role, "content": _text(message.content)}
        if isinstance(message, AssistantMessage) and message.tool_calls:
            data["tool_calls"] = []
            for j, call in enumerate(message.tool_calls):
                called[call.id] = call.function.name
                arguments = _arguments(call.function.arguments, f"messages.{i}.tool_calls.{j}.function.arguments")
                function = {"name": call.function.name, "arguments": arguments}
                data["tool_calls"].append({"id": call.id, "type": "function", "function": function})
        if isinstance(message, ToolMessage):
            if message.tool_call_id not in called:
                told = f"no assistant message before it has a tool call of the id {message.tool_call_id!r:.100}"
                raise ApiError(400, told, param=f"messages.{i}.tool_call_id", code="invalid_value")
            data |= {"tool_call_id": message.tool_call_id, "name": called[message.tool_call_id]}
        elif message.name is not None:
            data["name"] = message.name
        written.append(data)
    return written


def _text(content: Any) -> str:
    if not isinstance(content, list):
        return content or ""
    return joined(_part(part) for part in content)


def _part(part: TextPart | RefusalPart | ImagePart) -> str:
    match part:
        case TextPart():
            return part.text
        case RefusalPart():
            return part.refusal
        case ImagePart():
            return IMAGE


def _arguments(text: str, param: str) -> dict[str, Any]:
    arguments = read_arguments(text or "{}")
    if arguments is None:
        told = f"{text!r:.100} is no JSON object: a call's arguments are one"
        raise ApiError(400, told, param=param, code="invalid_value")
    return arguments
