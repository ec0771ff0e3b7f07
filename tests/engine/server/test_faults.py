"""What goes wrong around one request stays with it; what goes wrong with the engine is told at once."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from engine.executor.base import ExecutorDead
from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve, until

ASK = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 4}
LONG = {"model": "tiny", "prompt": [7, 8, 9], "max_tokens": 12_000, "ignore_eos": True, "stream": True}
ENGINE = EngineConfig(model="tiny", device="cpu", pool_tokens=16_384)


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    config = ServerConfig(port=0, grace_s=0, stream_buffer=64, send_buffer_bytes=4096)
    with serve(config, ENGINE) as server:
        yield server


def complete(server: LiveServer, **changes: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/completions", json=ASK | changes, timeout=30)


def metric(server: LiveServer, name: str) -> float:
    lines = httpx.get(f"{server.base_url}/metrics").text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), 0.0)


def ask_and_hang_on(server: LiveServer, body: dict[str, Any], *, receive_buffer: int = 65_536) -> socket.socket:
    """A connection over which a request was sent and nothing was read."""
    address = httpx.URL(server.base_url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(30)
    connection.connect((address.host, address.port))
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
    connection.sendall(head.encode() + b"\r\n\r\n" + data)
    return connection


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_a_client_that_hangs_up_frees_its_pages(server: LiveServer) -> None:
    service = server.state.service
    before = metric(server, 'radixlab_samples_total{outcome="cancelled"}')
    with closing(ask_and_hang_on(server, LONG)) as connection:
        while b"data:" not in connection.recv(65_536):
            pass
        assert service.n_open == 1
    until(lambda: service.n_open == 0)
    assert metric(server, 'radixlab_samples_total{outcome="cancelled"}') == before + 1
    service.thread.call(service.engine.check).result(20)
    memory = service.engine.memory
    assert memory.pool.n_free + memory.cache.cached_tokens == 16_384
    assert memory.cache.evictable_tokens == memory.cache.cached_tokens


def test_a_client_that_hangs_up_before_its_answer_frees_its_pages(server: LiveServer) -> None:
    service = server.state.service
    with closing(ask_and_hang_on(server, LONG | {"stream": False})):
        until(lambda: service.n_open == 1 and service.running == 1)
    until(lambda: service.n_open == 0)
    assert service.running == 0


def test_a_client_that_does_not_read_is_cut_off_and_nobody_else_notices(server: LiveServer) -> None:
    service = server.state.service
    before = metric(server, "radixlab_streams_cut_total")
    with closing(ask_and_hang_on(server, LONG, receive_buffer=2048)) as connection:
        until(lambda: service.n_open == 1)
        assert complete(server).status_code == 200
        until(lambda: service.n_open == 0)
        assert metric(server, "radixlab_streams_cut_total") == before + 1
        assert not read_all(connection).endswith(b"0\r\n\r\n"), "it looks like a whole answer"
    assert complete(server).status_code == 200


def test_a_reader_that_keeps_up_is_never_cut_however_small_the_buffer(server: LiveServer) -> None:
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=LONG | {"max_tokens": 600}) as answer:
        events = [line for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


def test_a_step_that_fails_fails_its_requests_and_the_server_lives(
    server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server.state.service.engine.executor, "launch", _raise(RuntimeError("secret of the inside")))
        failed = complete(server)
    assert failed.status_code == 500
    assert failed.json()["error"]["code"] == "step_failed"
    assert "secret" not in failed.text
    assert complete(server).status_code == 200
    assert httpx.get(f"{server.base_url}/ready").status_code == 200


def test_what_nobody_expected_is_a_500_that_shows_nothing(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.state.service.tokenizer, "encode", _raise(RuntimeError("secret of the inside")))
    failed = complete(server)
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert "secret" not in failed.text


def test_a_dead_engine_is_told_to_all_who_wait_and_turns_ready_red() -> None:
    with serve(ServerConfig(port=0, grace_s=0), ENGINE) as server, ThreadPoolExecutor(2) as threads:
        service = server.state.service
        asked = [threads.submit(complete, server, max_tokens=10_000, ignore_eos=True) for _ in range(2)]
        until(lambda: service.running == 2)
        service.engine.executor.launch = _raise(ExecutorDead("the device is gone"))  # type: ignore[method-assign]
        answers = [one.result() for one in asked]
    assert [answer.status_code for answer in answers] == [500, 500]
    assert answers[0].json()["error"]["code"] == "engine_dead"
    assert "device" not in answers[0].text
    assert service.died.is_set()
    assert not service.ready


def _raise(error: BaseException) -> Callable[..., Any]:
    def raising(*args: Any, **kwargs: Any) -> Any:
        raise error

    return raising
