"""POST /v1/chat/completions: the next message of a chat, calls of tools among it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.constraints import Grammar, ToolChoice, any_json, json_schema
from engine.request import RequestError, TokenLogprob
from engine.server import asking
from engine.server.chat_models import ChatRequest, ChatResponse, JsonSchemaFormat, NamedTool, ObjectFormat
from engine.server.chat_prompt import encode_chat, read_tools
from engine.server.conversation import ToolUse
from engine.server.errors import ApiError
from engine.server.generation import Finish
from engine.server.group import Ask, Group, Sample, queue
from engine.server.sampling import bad_request, grammar_of, request_params
from engine.server.sse import DONE, EventStream, answer, as_json, aside, event
from engine.server.state import ServerState
from engine.server.token_logprobs import TokenTexts, chat_logprobs
from engine.server.tool_calls import CallArguments, CallStart, Content, ToolCallParser
from engine.server.usage import Usage


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["OpenAI"])
    texts = TokenTexts(state.service.tokenizer)

    @router.post("/v1/chat/completions", response_model=ChatResponse)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        completion = _Completion(state, texts, body, request)
        if body.stream:
            return EventStream(completion.stream())
        return await answer(request.receive, completion.whole())

    return router


class _Completion:
    """One request."""

    def __init__(self, state: ServerState, texts: TokenTexts, body: ChatRequest, request: Request) -> None:
        """Raises ApiError for what can be refused without the engine."""
        asking.check(state, body)
        self._state = state
        self._texts = texts
        self._body = body
        self._options = asking.options(request, body)
        self._max_tokens = _max_tokens(body)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
        self._use = _tool_use(body)
        try:
            self._calls = state.chat.grammar(self._use)
        except RequestError as error:
            raise bad_request(error, "tools") from None
        self._wanted = grammar_of(body, {"tools": self._calls, "response_format": _response_grammar(body)})

    async def whole(self) -> bytes:
        async with await self._queue() as group:
            (samples,) = await group.collect()
        return await aside(group.is_large, self._answer, group, samples)

    def _answer(self, group: Group, samples: Sequence[Sample]) -> bytes:
        usage = Usage.of([group.generations[0].prompt])
        choices = []
        for index, sample in enumerate(samples):
            usage.add(index, sample.finish)
            choices.append(self._open(index).whole(sample.text, sample.logprobs, sample.finish))
        return as_json({**self._head("chat.completion"), "choices": choices, "usage": usage.as_data()})

    async def stream(self) -> AsyncGenerator[bytes, None]:
        async with await self._queue() as group, aclosing(group.pieces()) as pieces:
            usage = Usage.of([group.generations[0].prompt])
            wants_usage = asking.wants_usage(self._body)
            bare = self._head("chat.completion.chunk")
            head = {**bare, "usage": None} if wants_usage else bare
            choices: dict[int, _Choice] = {}
            async for _, delta in pieces:
                if delta.index not in choices:
                    choices[delta.index] = self._open(delta.index)
                if delta.finish is not None:
                    usage.add(delta.index, delta.finish)
                for chunk in choices[delta.index].take(delta.text, delta.logprobs, delta.finish):
                    yield event({**head, "choices": [chunk]})
            if wants_usage:
                yield event({**bare, "choices": [], "usage": usage.as_data()})
            yield DONE

    async def _queue(self) -> Group:
        body, state = self._body, self._state
        prompt = await encode_chat(state, body.messages, self._use)
        room = asking.room(state, prompt.n_tokens(state.service.engine.image_tokens))
        params = request_params(
            body,
            max_tokens=room if self._max_tokens is None else self._max_tokens,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=self._wanted.grammar,
        )
        return await queue(
            state.service, [Ask(prompt.tokens, params, self._wanted.field, prompt.images)], **self._options
        )

    def _head(self, kind: str) -> dict[str, Any]:
        return asking.head(kind, "chatcmpl", self._state.model_name)

    def _open(self, index: int) -> _Choice:
        parser = None if self._calls is None else self._state.chat.parser()
        return _Choice(index, parser, self._texts if self._body.logprobs else None)


class _Choice:
    """One choice as it grows."""

    def __init__(self, index: int, parser: ToolCallParser | None, texts: TokenTexts | None) -> None:
        """parser: where there are tools. texts: where log-probabilities are asked for."""
        self._index = index
        self._parser = parser
        self._texts = texts
        self._logprobs: list[dict[str, Any]] = []
        """Of tokens whose text is held back."""
        self._begun = False

    def whole(self, text: str, logprobs: Sequence[TokenLogprob], finish: Finish) -> dict[str, Any]:
        content: list[str] = []
        calls: list[dict[str, Any]] = []
        for delta in self._deltas(text, finish):
            content.append(delta.get("content", ""))
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(calls):
                    calls.append({"id": call["id"], "type": "function", "function": call["function"]})
                else:
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
        said = "".join(content)
        message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None}
        if calls:
            message["tool_calls"] = calls
        found = None if self._texts is None else {"content": chat_logprobs(self._texts, logprobs), "refusal": None}
        return {
            "index": self._index,
            "message": {**message, "refusal": None},
            "logprobs": found,
            "finish_reason": self._reason(finish),
        }

    def take(self, text: str, logprobs: Sequence[TokenLogprob], finish: Finish | None) -> Iterator[dict[str, Any]]:
        """The chunks' choices: the role first, then what was said and called, then why it ended."""
        if not self._begun:
            self._begun = True
            yield self._chunk({"role": "assistant", "content": "", "refusal": None}, None)
        if self._texts is not None:
            self._logprobs += chat_logprobs(self._texts, logprobs)
        for delta in self._deltas(text, finish):
            yield self._chunk(delta, None)
        if finish is not None:
            yield self._chunk({}, self._reason(finish))

    def _chunk(self, delta: dict[str, Any], reason: str | None) -> dict[str, Any]:
        found = None
        if self._logprobs:
            found = {"content": self._logprobs, "refusal": None}
            self._logprobs = []
        return {"index": self._index, "delta": delta, "logprobs": found, "finish_reason": reason}

    def _deltas(self, text: str, finish: Finish | None) -> Iterator[dict[str, Any]]:
        if self._parser is None:
            if text:
                yield {"content": text}
            return
        events = self._parser.push(text)
        if finish is not None:
            events += self._parser.finish()
        for found in events:
            match found:
                case Content(text=said):
                    yield {"content": said}
                case CallStart(call=i, id=call_id, name=name):
                    function = {"name": name, "arguments": ""}
                    yield {"tool_calls": [{"index": i, "id": call_id, "type": "function", "function": function}]}
                case CallArguments(call=i, text=piece):
                    yield {"tool_calls": [{"index": i, "function": {"arguments": piece}}]}

    def _reason(self, finish: Finish) -> str:
        called = self._parser is not None and self._parser.n_calls > 0
        return "tool_calls" if called and finish.reason == "stop" else finish.reason


def _max_tokens(body: ChatRequest) -> int | None:
    given = {value for value in (body.max_tokens, body.max_completion_tokens) if value is not None}
    if len(given) > 1:
        told = "max_tokens is the older name of max_completion_tokens, and they differ: give one of them"
        raise ApiError(400, told, param="max_tokens", code="invalid_value")
    return next(iter(given), None)


def _tool_use(body: ChatRequest) -> ToolUse:
    offered, choice = read_tools(body.tools or ()), body.tool_choice
    parallel = body.parallel_tool_calls is not False
    if not offered and choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice asks for a call: give tools", param="tool_choice", code="invalid_value")
    if isinstance(choice, NamedTool):
        name = choice.function.name
        if name not in [tool.name for tool in offered]:
            told = f"there is no tool {name!r:.100}; tools has {', '.join(tool.name for tool in offered)}"
            raise ApiError(400, told, param="tool_choice", code="invalid_value")
        return ToolUse(offered, ToolChoice.REQUIRED, name, parallel=False)
    match choice:
        case "none":
            return ToolUse(offered, None)
        case "required":
            return ToolUse(offered, ToolChoice.REQUIRED, parallel=parallel)
    return ToolUse(offered, ToolChoice.AUTO, parallel=parallel)


def _response_grammar(body: ChatRequest) -> Grammar | None:
    match body.response_format:
        case ObjectFormat():
            return any_json()
        case JsonSchemaFormat(json_schema=asked):
            if asked.schema_ is None:
                raise ApiError(400, "a schema is required", param="response_format.json_schema.schema")
            try:
                return json_schema(asked.schema_)
            except RequestError as error:
                raise bad_request(error, "response_format.json_schema.schema") from None
    return None
