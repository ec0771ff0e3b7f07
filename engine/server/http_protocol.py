"""HTTP connections that may not linger: uvicorn's, with limits on a request's headers and on unread answers."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from engine.server.answers import error_body
from engine.server.config import ServerConfig
from engine.server.errors import ApiError


def guarded_protocol(limits: ServerConfig) -> type[HttpToolsProtocol]:
    """The class of connections with these limits."""

    class Guarded(GuardedProtocol):
        pass

    Guarded.limits = limits
    return Guarded


class GuardedProtocol(HttpToolsProtocol):
    """A request's headers must come within a time and a size. `scope["state"]["abort"]` closes the connection."""

    limits: ServerConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._n_header_bytes = 0
        self._refused: ApiError | None = None
        self._n_unread = 0
        self._expect_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        self._headers_are_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_headers()
        super().data_received(data)
        if self._timer is not None and not self.transport.is_closing():
            self._n_header_bytes += len(data)
            if self._n_header_bytes > self.limits.max_header_bytes:
                self._refuse(self._too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["abort"] = self.transport.abort

    def on_headers_complete(self) -> None:
        self._headers_are_there()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_header_bytes:
            self._refused = self._too_large()
            raise ValueError(self._refused.message)  # the parser stops; what it makes of it: send_400_response
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refused or ApiError(400, "that is not an HTTP request", code="invalid_http"))

    def timeout_keep_alive_handler(self) -> None:
        """An answer that its client has stopped to read isn't waited for."""
        n_unread = self.transport.get_write_buffer_size()
        if n_unread and n_unread == self._n_unread:
            self.transport.abort()
        elif n_unread:
            self._n_unread = n_unread
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def _expect_headers(self) -> None:
        self._n_header_bytes = 0
        self._timer = self.loop.call_later(self.limits.header_timeout_s, self._headers_are_late)

    def _headers_are_there(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _headers_are_late(self) -> None:
        self._timer = None
        if not self._n_header_bytes:
            self.transport.close()
        told = f"the request's headers took more than {self.limits.header_timeout_s:g} s to come"
        self._refuse(ApiError(408, told, code="too_slow"))

    def _too_large(self) -> ApiError:
        told = f"the request's headers are larger than {self.limits.max_header_bytes} bytes (max_header_bytes)"
        return ApiError(431, told, code="headers_too_large")

    def _refuse(self, error: ApiError) -> None:
        self._headers_are_there()
        if self.transport.is_closing():
            return
        body = json.dumps(error_body(error, "")).encode()
        head = (
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
