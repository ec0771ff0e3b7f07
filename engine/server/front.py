"""The HTTP server in front of an engine: it opens, takes requests, and closes in good order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

from engine.config import ConfigError
from engine.server.config import ServerConfig
from engine.server.http_protocol import guarded_protocol
from engine.server.state import ServerState

log = logging.getLogger("radixlab.server")

_LAST_ANSWERS = 2
"""Seconds for what was aborted to be told so."""


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the program's."""
        yield


class Front:
    """One run of a server. `run` on the event loop; `close` from there too."""

    def __init__(self, state: ServerState, app: FastAPI, listener: socket.socket) -> None:
        config = state.config
        self._service, self._grace = state.service, config.grace_s
        self._listener = listener
        self._closing = asyncio.Event()
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=guarded_protocol(config),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=config.max_connections,
                timeout_keep_alive=max(1, round(config.keep_alive_s)),
                timeout_graceful_shutdown=_LAST_ANSWERS,
            )
        )

    async def run(self, ready: Callable[[], None]) -> int:
        """Serves until `close` is called or the engine dies. The exit code: 0, or 1 for a dead engine."""
        service = self._service
        service.start()
        serving = asyncio.create_task(self._uvicorn.serve(sockets=[self._listener]))
        try:
            while not self._uvicorn.started and not serving.done():
                await asyncio.sleep(0.005)
            if not serving.done():
                ready()
            await _first_of(service.died, self._closing)
            await self._drain()
        finally:
            await service.stop()
            self._uvicorn.should_exit = True
            await serving
        return 1 if service.died.is_set() else 0

    def close(self) -> None:
        """Takes no more requests, lets what is under way finish within the grace period, and ends."""
        self._closing.set()

    @property
    def closing(self) -> bool:
        return self._closing.is_set()

    async def _drain(self) -> None:
        service = self._service
        service.draining = True
        if service.died.is_set():
            return
        log.info("stopping: %d outputs are under way and have %g s to finish", service.n_open, self._grace)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while service.n_open:
                    await asyncio.sleep(0.02)


async def _first_of(*events: asyncio.Event) -> None:
    """Returns when one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


def listen(config: ServerConfig) -> socket.socket:
    """A socket on the address, its send buffers bounded. Raises ConfigError when it can't be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.send_buffer_bytes)  # connections inherit it
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"can't listen on host={config.host} port={config.port}: {error.strerror or error}; port=0 takes any that "
            "is free"
        ) from None
    listener.set_inheritable(False)
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
