"""From a body of Anthropic's form to the messages and tools that the model is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from PIL.Image import Image

from engine.chat_template import IMAGE
from engine.constraints import Grammar, ToolChoice, json_schema
from engine.request import RequestError
from engine.server.conversation import Chat, ToolUse, joined
from engine.server.errors import ApiError, unsupported
from engine.server.images import ChatPrompt, ImageLimits, check_count, read_base64, read_image
from engine.server.message_models import (
    Base64Source,
    CountTokensRequest,
    ImageBlock,
    TextBlock,
    Texts,
    ToolParam,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from engine.server.sampling import bad_request
from engine.server.state import ServerState
from engine.server.tool_formats import Tool, make_tool


class Told(NamedTuple):
    messages: list[dict[str, Any]]
    use: ToolUse
    continue_last: bool
    """The last message is the assistant's own, which the answer goes on from."""


def told(body: CountTokensRequest) -> Told:
    """Raises ApiError 400 for tools and results that don't fit together."""
    messages: list[dict[str, Any]] = []
    if body.system:
        messages.append({"role": "system", "content": _text_of(body.system)})
    names: dict[str, str] = {}
    for i, turn in enumerate(body.messages):
        for message in _messages(turn, i, names):
            last = messages[-1] if messages else None
            if last is not None and last["role"] == message["role"] != "tool":  # turns of one role are one turn
                _merge(last, message)
            else:
                messages.append(message)
    continue_last = messages[-1]["role"] == "assistant"
    if continue_last and "tool_calls" in messages[-1]:
        raise _wrong("messages", "the last message calls a tool: give its result in a message of the user's")
    return Told(messages, tool_use(body), continue_last)


def tool_use(body: CountTokensRequest) -> ToolUse:
    """Raises ApiError 400."""
    offered = [_tool(tool, i) for i, tool in enumerate(body.tools or ())]
    choice = body.tool_choice
    if choice is None:
        return ToolUse(offered)
    if choice.type in ("any", "tool") and not offered:
        raise _wrong("tool_choice", f"{choice.type!r} needs tools: give at least one, or leave tool_choice out")
    if (choice.name is not None) != (choice.type == "tool"):
        raise _wrong("tool_choice.name", "goes with the type 'tool', and with that alone")
    if choice.name is not None and choice.name not in [tool.name for tool in offered]:
        raise _wrong("tool_choice.name", f"there is no tool {choice.name!r:.150} among the tools offered")
    kinds = {"auto": ToolChoice.AUTO, "any": ToolChoice.REQUIRED, "tool": ToolChoice.REQUIRED, "none": None}
    return ToolUse(offered, kinds[choice.type], choice.name, not choice.disable_parallel_tool_use)


def output_grammar(body: CountTokensRequest, chat: Chat, use: ToolUse) -> Grammar | None:
    """What the output must match, if anything. Raises ApiError 400."""
    wanted = body.output_config.format if body.output_config is not None else None
    try:
        calls = chat.grammar(use)
    except RequestError as error:
        raise bad_request(error, "tools") from None
    if wanted is None:
        return calls
    if calls is not None:
        raise _wrong("output_config.format", "can't go with tools that may be called: set tool_choice to none")
    try:
        return json_schema(wanted.schema_)
    except RequestError as error:
        raise bad_request(error, "output_config.format.schema") from None


async def encode(state: ServerState, body: CountTokensRequest, told: Told) -> ChatPrompt:
    """The prompt's token ids, and the images in it. Raises ApiError 400 for what can't be put into one."""
    found, images = list(_images(body)), []
    if found:
        limits = ImageLimits.of(state.config)
        check_count(len(found), limits)
        for param, image in found:
            images.append(await asyncio.to_thread(_read, image, limits, param))
        if not state.service.engine.image_tokens:
            raise unsupported(found[0][0], "the model takes no images; send text alone")
    try:
        tokens = await state.chat.encode_aside(told.messages, told.use, continue_last=told.continue_last)
        return ChatPrompt(tokens, images)
    except RequestError as error:
        raise bad_request(error, "messages") from None


def _read(image: ImageBlock, limits: ImageLimits, param: str) -> Image:
    source = image.source
    if isinstance(source, Base64Source):
        return read_base64(source.data, source.media_type, limits, param=param).pixels
    return read_image(source.url, limits, param=param).pixels


def _images(body: CountTokensRequest) -> Iterator[tuple[str, ImageBlock]]:
    for i, turn in enumerate(body.messages):
        for j, block in enumerate(turn.blocks):
            inner = block.content if isinstance(block, ToolResultBlock) and not isinstance(block.content, str) else ()
            for k, part in enumerate(inner):
                if isinstance(part, ImageBlock):
                    yield f"messages.{i}.content.{j}.content.{k}", part
            if isinstance(block, ImageBlock):
                yield f"messages.{i}.content.{j}", block


def _messages(turn: Turn, i: int, names: dict[str, str]) -> Iterator[dict[str, Any]]:
    """A turn's messages, as templates know them. names: of the tools called so far, by the id of the call."""
    texts: list[str] = []
    calls = []
    for j, block in enumerate(turn.blocks):
        where = f"messages.{i}.content.{j}"
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ToolUseBlock):
            if turn.role != "assistant":
                raise _wrong(where, "tool_use stands in the assistant's messages alone")
            names[block.id] = block.name
            called = {"name": block.name, "arguments": block.input}
            calls.append({"id": block.id, "type": "function", "function": called})
        elif isinstance(block, ToolResultBlock):
            if turn.role != "user":
                raise _wrong(where, "tool_result stands in the user's messages alone")
            if block.tool_use_id not in names:
                raise _wrong(f"{where}.tool_use_id", f"{block.tool_use_id!r:.150} is the id of no call before it")
            if texts:
                yield {"role": "user", "content": joined(texts)}
                texts = []
            yield {
                "role": "tool",
                "tool_call_id": block.tool_use_id,
                "name": names[block.tool_use_id],
                "content": ("Error: " if block.is_error else "") + _text_of(block.content),
            }
        elif turn.role != "user":
            raise _wrong(where, "an image stands in the user's messages alone")
        else:
            texts.append(IMAGE)
    if calls:
        yield {"role": turn.role, "content": joined(texts), "tool_calls": calls}
    elif texts:
        yield {"role": turn.role, "content": joined(texts)}
    elif turn.role == "assistant" or not turn.content:
        raise _wrong(f"messages.{i}.content", "is empty: a message must say something")


def _merge(message: dict[str, Any], more: dict[str, Any]) -> None:
    message["content"] = joined([text for text in (message["content"], more["content"]) if text])
    calls = [*message.get("tool_calls", ()), *more.get("tool_calls", ())]
    if calls:
        message["tool_calls"] = calls


def _text_of(content: Texts | Sequence[TextBlock | ImageBlock]) -> str:
    if isinstance(content, str):
        return content
    return joined([block.text if isinstance(block, TextBlock) else IMAGE for block in content])


def _tool(tool: ToolParam, i: int) -> Tool:
    try:
        return make_tool(tool.name, tool.description, tool.input_schema)
    except RequestError as error:
        raise bad_request(error, f"tools.{i}") from None


def _wrong(param: str, why: str) -> ApiError:
    return ApiError(400, f"{param}: {why}", param=param, code="invalid_value")
