"""POST /v1/messages and /v1/messages/count_tokens: chat in Anthropic's form.

The headers anthropic-version and anthropic-beta change nothing: what isn't served is refused by its field. Marks of
cache_control are accepted and change nothing either, since every prefix is cached and found by what it says.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from engine.request import RequestError, SamplingParams
from engine.server import asking
from engine.server.answers import error_body
from engine.server.errors import ApiError
from engine.server.generation import Finish, Generation
from engine.server.message_input import encode, output_grammar, told
from engine.server.message_models import CountTokensRequest, MessagesRequest
from engine.server.message_output import Blocks
from engine.server.sampling import bad_request
from engine.server.sse import EventStream, answer, as_json
from engine.server.state import ServerState

PATH = "/v1/messages"


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["Anthropic"])

    @router.post(PATH)
    async def messages(body: MessagesRequest, request: Request) -> Response:
        asked = _Asked(state, body)
        if body.stream:
            return EventStream(asked.stream(), on_error=_error_event)
        return await answer(request.receive, asked.whole())

    @router.post(f"{PATH}/count_tokens")
    async def count_tokens(body: CountTokensRequest) -> dict[str, int]:
        _check_model(state, body)
        return {"input_tokens": (await encode(state, body, told(body))).n_tokens(state.service.engine.image_tokens)}

    return router


class _Asked:
    """One request for a message."""

    def __init__(self, state: ServerState, body: MessagesRequest) -> None:
        """Raises ApiError for what can be refused without the engine."""
        _check_model(state, body)
        self._state = state
        self._body = body
        self._told = told(body)
        self._grammar = output_grammar(body, state.chat, self._told.use)
        self._cut_by_context = False
        """The context has room for fewer tokens than were asked for."""

    async def whole(self) -> bytes:
        generation = await self._generate()
        blocks = self._blocks()
        try:
            async for delta in generation:
                for _ in blocks.take(delta.text, delta.finish):
                    pass
        finally:
            generation.cancel()
        assert blocks.finish is not None
        return as_json(
            {
                **self._head(),
                "content": blocks.content,
                **self._ended(blocks, blocks.finish),
                "usage": _usage(generation, blocks.finish),
            }
        )

    async def stream(self) -> AsyncGenerator[bytes, None]:
        generation = await self._generate()
        blocks = self._blocks()
        try:
            yield _event({"type": "message_start", "message": {**self._head(), "usage": _usage(generation, None)}})
            yield _event({"type": "ping"})
            async for delta in generation:
                for event in blocks.take(delta.text, delta.finish):
                    yield _event(event)
            assert blocks.finish is not None
            usage = _usage(generation, blocks.finish)
            yield _event({"type": "message_delta", "delta": self._ended(blocks, blocks.finish), "usage": usage})
            yield _event({"type": "message_stop"})
        finally:
            generation.cancel()

    async def _generate(self) -> Generation:
        body = self._body
        prompt = await encode(self._state, body, self._told)
        room = asking.room(self._state, prompt.n_tokens(self._state.service.engine.image_tokens))
        self._cut_by_context = 0 < room < body.max_tokens
        chosen: dict[str, Any] = {"temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k}
        try:
            params = SamplingParams(
                max_tokens=room if self._cut_by_context else body.max_tokens,
                stop=tuple(body.stop_sequences or ()),
                grammar=self._grammar,
                **{name: value for name, value in chosen.items() if value is not None},
            )
        except RequestError as error:
            raise bad_request(error) from None
        user = body.metadata.user_id if body.metadata is not None else None
        return await self._state.service.generate(prompt.tokens, params, images=prompt.images, client=user or "")

    def _blocks(self) -> Blocks:
        return Blocks(self._state.chat.parser("toolu_") if self._told.use.callable else None)

    def _head(self) -> dict[str, Any]:
        return {
            "id": f"msg_{secrets.token_hex(12)}",
            "type": "message",
            "role": "assistant",
            "model": self._state.model_name,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _ended(self, blocks: Blocks, finish: Finish) -> dict[str, Any]:
        sequence = finish.stop_match if isinstance(finish.stop_match, str) else None
        if finish.reason == "length":
            reason = "model_context_window_exceeded" if self._cut_by_context else "max_tokens"
        elif sequence is not None:
            reason = "stop_sequence"
        else:
            reason = "tool_use" if blocks.called else "end_turn"
        return {"stop_reason": reason, "stop_sequence": sequence}


def _usage(generation: Generation, finish: Finish | None) -> dict[str, int]:
    """input_tokens: those that had to be computed, once that is known. Writing the cache takes none."""
    cached = finish.cached_tokens if finish is not None else 0
    return {
        "input_tokens": len(generation.prompt) - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": finish.output_tokens if finish is not None else 0,
    }


def _check_model(state: ServerState, body: CountTokensRequest) -> None:
    if body.model != state.model_name:
        wrong = f"the model {body.model!r:.100} is not served; this server has {state.model_name!r}"
        raise ApiError(404, wrong, param="model", code="model_not_found")


def _event(data: Mapping[str, Any]) -> bytes:
    return b"event: " + data["type"].encode() + b"\ndata: " + as_json(data) + b"\n\n"


def _error_event(error: ApiError) -> bytes:
    return _event(error_body(error, PATH))
