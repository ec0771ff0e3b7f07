"""What stands before the endpoints: who asks, how much they may send, how long they may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from engine.server.answers import error_answer
from engine.server.auth import ApiKeys, given_key
from engine.server.config import ServerConfig
from engine.server.errors import ApiError
from engine.server.metrics import ServerMetrics
from engine.server.service import Asker

OPEN_PATHS = ("/health", "/ready")
"""Answered without a key."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Gate:
    """ASGI middleware.

    hosts: names that the Host header may have; None: any. A page of the web that has its own name resolve to this
        machine is kept from a server without keys by that.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        config: ServerConfig,
        keys: ApiKeys,
        metrics: ServerMetrics,
        hosts: Collection[str] | None,
    ) -> None:
        self._app = app
        self._config, self._keys, self._metrics, self._hosts = config, keys, metrics, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        abort: Callable[[], None] = scope.get("state", {}).get("abort", _nothing)
        answer = _Answer(send)
        try:
            client = self._admit(scope)
        except ApiError as error:
            await error_answer(error, scope["path"])(scope, receive, answer)
            self._count("refused", answer)
            return
        Asker.client.set(client)
        Asker.cut.set(abort)
        try:
            await self._app(scope, _Body(receive, self._config), answer)
        finally:
            self._count(getattr(scope.get("route"), "path", "unknown"), answer)
            if answer.status and not answer.complete:
                abort()  # half an answer was sent: nothing else can follow on this connection

    def _count(self, path: str, answer: _Answer) -> None:
        self._metrics.answers.labels(path, answer.status or 499).inc()

    def _admit(self, scope: Scope) -> str:
        """The name of the client. Raises ApiError."""
        headers = dict(scope["headers"])
        if self._hosts is not None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if _without_port(host) not in self._hosts:
                told = f"the host {host!r:.100} is not this server's name: it answers to {', '.join(self._hosts)}"
                raise ApiError(403, told, code="host_not_allowed")
        client = ""
        if len(self._keys) and scope["path"] not in OPEN_PATHS:
            given = given_key(scope["headers"])
            if given is None:
                told = "an API key is needed: send `Authorization: Bearer KEY` or `x-api-key: KEY`"
                raise ApiError(401, told, code="missing_api_key")
            name = self._keys.name_of(given)
            if name is None:
                raise ApiError(401, "the API key is not known here", code="invalid_api_key")
            client = name
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._config.max_body_bytes:
            raise _too_large(self._config)
        return client


class _Body:
    """The request's body as it comes in, within its limits of size and time."""

    def __init__(self, receive: Receive, config: ServerConfig) -> None:
        self._receive, self._config = receive, config
        self._n_bytes = 0
        self._whole = False
        self._deadline: float | None = None

    async def __call__(self) -> Message:
        """Raises HTTPException, which the body's reader lets through, when it is too large or too slow."""
        if self._whole:  # it is the end of the connection that is waited for
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._config.body_timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, f"the body took more than {self._config.body_timeout_s:g} s to come") from None
        self._n_bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._n_bytes > self._config.max_body_bytes:
            raise HTTPException(413, _too_large(self._config).message)
        return message


class _Answer:
    """Passes the answer on, and knows how far it came."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)


def _too_large(config: ServerConfig) -> ApiError:
    told = f"the body is larger than {config.max_body_bytes} bytes (max_body_bytes): send less"
    return ApiError(413, told, code="body_too_large")


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _nothing(*_: Any) -> None:
    pass
