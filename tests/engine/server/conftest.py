"""A server over the tiny model, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import uvicorn

from engine.config import EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from engine.server.app import make_app
from engine.server.config import ServerConfig
from engine.server.conversation import Chat
from engine.server.service import EngineService
from engine.server.state import ServerState


class LiveServer(NamedTuple):
    base_url: str
    """Without a slash at its end; OpenAI's client wants `base_url + "/v1"`."""
    state: ServerState


@contextmanager
def serve(config: ServerConfig | None = None, engine: EngineConfig | None = None) -> Iterator[LiveServer]:
    """A server in a thread of this process, with its event loop; gone at the end."""
    config = config or ServerConfig(port=0)
    made = make_engine(engine or EngineConfig(model="tiny", device="cpu", pool_tokens=8192))
    service = EngineService(made, config)
    state = ServerState(
        service=service,
        config=config,
        model_name="tiny",
        created=1_700_000_000,
        chat=Chat.of(service.tokenizer, config),
    )
    server = uvicorn.Server(uvicorn.Config(make_app(state), port=0, log_level="warning", lifespan="off"))

    async def run() -> None:
        service.start()
        await server.serve()
        await service.stop()

    thread = threading.Thread(target=asyncio.run, args=(run(),), name="event loop")
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server didn't start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield LiveServer(f"http://127.0.0.1:{port}", state)
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """Shared by all tests: don't stop it, and don't count on an empty cache."""
    with serve() as server:
        yield server


@pytest.fixture(scope="session")
def reference_engine() -> Engine:
    """The served model without a server."""
    return make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=8192))
