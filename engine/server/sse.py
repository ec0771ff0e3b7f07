"""Answers as JSON and as server-sent events, and work that ends when its client hangs up.

JSON is written from plain dicts: checking a model once a token would cost more than the token.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.server.answers import error_body
from engine.server.errors import ApiError
from engine.server.service import Asker

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
"""How a stream of OpenAI's form ends."""
SEND_TIMEOUT = 60.0
"""Seconds that a client may leave its stream unread, with the connection full, before it is cut."""
_CLIENT_CLOSED_REQUEST = 499

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


class ClientGone(Exception):
    """The client hung up: nobody reads the answer."""


def as_json(data: Mapping[str, Any] | Sequence[Any]) -> bytes:
    """Raises ValueError for a number that isn't finite."""
    return _encode(data).encode()


def event(data: Mapping[str, Any]) -> bytes:
    return b"data: " + as_json(data) + b"\n\n"


def error_event(error: ApiError) -> bytes:
    """What a stream of OpenAI's form says when it fails after it began."""
    return event(error_body(error, "/v1")) + DONE


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result. Raises ClientGone, with the work cancelled, if the client hangs up before."""
    task = asyncio.ensure_future(work)
    hang_up = asyncio.ensure_future(_hang_up(receive))
    try:
        await asyncio.wait((task, hang_up), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        hang_up.cancel()
        task.cancel()
        await asyncio.gather(task, hang_up, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def aside(long: bool, call: Callable[..., T], *args: Any) -> T:
    """The call's result, from a thread where it may take long."""
    return await asyncio.to_thread(call, *args) if long else call(*args)


async def answer(receive: Receive, work: Coroutine[Any, Any, bytes]) -> Response:
    """The work's result, JSON; the work ends when the client hangs up."""
    try:
        return Response(await until_gone(receive, work), media_type="application/json")
    except ClientGone:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)


class EventStream(Response):
    """Sends events as they come. What fails before the first one is an ordinary answer with its own status.

    events: framed, as `event` makes them. Closed when the client hangs up or doesn't read, so its `finally` runs.
    on_error: the last event of a stream that fails after its first one.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], on_error: Callable[[ApiError], bytes] = error_event
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(ClientGone):
            await until_gone(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        try:
            first = await anext(self._events, b"")
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await _send_part(send, first)
            try:
                async for part in self._events:
                    await _send_part(send, part)
            except ApiError as error:
                await _send_part(send, self._on_error(error))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            Asker.cut.get()()
        finally:
            await self._events.aclose()


async def _send_part(send: Send, part: bytes) -> None:
    """Raises TimeoutError when the connection has been full for too long."""
    async with asyncio.timeout(SEND_TIMEOUT):
        await send({"type": "http.response.body", "body": part, "more_body": True})
