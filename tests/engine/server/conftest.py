"""A server over the tiny model, on a port of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import uvloop

from engine.config import EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from engine.request import Request
from engine.server.app import make_app
from engine.server.auth import ApiKeys
from engine.server.config import ServerConfig
from engine.server.conversation import Chat
from engine.server.front import Front, listen, url
from engine.server.service import EngineService
from engine.server.state import ServerState


class LiveServer(NamedTuple):
    base_url: str
    """Without a slash at its end; OpenAI's client wants `base_url + "/v1"`."""
    state: ServerState


class Brake:
    """Holds an engine before its next step."""

    def __init__(self, engine: Engine) -> None:
        self._free = threading.Event()
        self._free.set()
        step = engine.step

        def braked() -> list[Request]:
            assert self._free.wait(timeout=30), "nobody let the engine go on"
            return step()

        engine.step = braked  # type: ignore[method-assign]

    @contextmanager
    def hold(self) -> Iterator[None]:
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()


def until(true: Callable[[], bool]) -> None:
    """Waits for what another thread is about to do."""
    for _ in range(3000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it didn't happen")


@contextmanager
def serve(
    config: ServerConfig | None = None,
    engine: EngineConfig | Engine | None = None,
    *,
    keys: ApiKeys | None = None,
    hosts: Collection[str] | None = None,
) -> Iterator[LiveServer]:
    """A server in a thread of this process, with its event loop; gone at the end."""
    config = config or ServerConfig(port=0, grace_s=0)
    if not isinstance(engine, Engine):
        engine = make_engine(engine or EngineConfig(model="tiny", device="cpu", pool_tokens=8192), keep_history=False)
    service = EngineService(engine, config)
    state = ServerState(
        service=service,
        config=config,
        model_name="tiny",
        created=1_700_000_000,
        chat=Chat.of(service.tokenizer, config),
    )
    listener = listen(config)
    front = Front(state, make_app(state, keys=keys, hosts=hosts), listener)
    ready = threading.Event()

    async def run() -> None:
        await front.run(ready.set)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_until_complete, args=(run(),), name="event loop")
        thread.start()
        try:
            assert ready.wait(timeout=30), "the server didn't start"
            yield LiveServer(url(listener), state)
        finally:
            loop.call_soon_threadsafe(front.close)
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
