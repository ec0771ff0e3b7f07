"""More than can be served: who comes too many is told when to come back, and nothing is computed in vain."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from engine.server.config import ServerConfig
from tests.engine.server.conftest import Brake, LiveServer, serve, until

ASK = {"model": "tiny", "prompt": "Once upon a time", "max_tokens": 3}


class Served:
    """A server of one output at a time with a queue of two, and clients for it."""

    def __init__(self, server: LiveServer, brake: Brake) -> None:
        self.server, self.brake = server, brake
        self.service = server.state.service
        self._threads = ThreadPoolExecutor(8)

    def ask(self, path: str = "/v1/completions", **changes: Any) -> Future[httpx.Response]:
        return self._threads.submit(httpx.post, self.server.base_url + path, json=ASK | changes, timeout=30)

    def metrics(self) -> str:
        return httpx.get(f"{self.server.base_url}/metrics").text


@pytest.fixture(scope="module")
def module_served() -> Iterator[Served]:
    engine = make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=2048, max_running=1))
    brake = Brake(engine)
    with serve(ServerConfig(port=0, max_waiting=2, grace_s=0), engine) as server:
        yield Served(server, brake)


@pytest.fixture
def served(module_served: Served) -> Iterator[Served]:
    yield module_served
    until(lambda: module_served.service.n_open == 0)


def test_one_too_many_is_told_when_to_come_back_and_the_others_are_served(served: Served) -> None:
    with served.brake.hold():
        queued = [served.ask()]
        until(lambda: served.service.n_open == 1)
        queued.append(served.ask())
        until(lambda: served.service.n_open == 2)
        refused = served.ask().result()
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert int(refused.headers["retry-after"]) >= 1
        assert served.ask("/v1/completions", n=2).result().status_code == 429
    assert [one.result().status_code for one in queued] == [200, 200]
    assert served.ask().result().status_code == 200


def test_anthropics_endpoint_refuses_in_its_own_shape(served: Served) -> None:
    with served.brake.hold():
        queued = [served.ask(), served.ask()]
        until(lambda: served.service.n_open == 2)
        body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "Hello"}]}
        refused = httpx.post(f"{served.server.base_url}/v1/messages", json=body)
    assert refused.status_code == 429
    assert refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert [one.result().status_code for one in queued] == [200, 200]


def test_a_request_whose_time_is_up_costs_no_pass(served: Served) -> None:
    httpx.post(f"{served.server.base_url}/flush_cache")
    with served.brake.hold():
        first = served.ask(prompt="A long time ago", max_tokens=1)
        until(lambda: served.service.n_open == 1)
        late = served.ask(prompt="Never to be computed", timeout=0.01)
        until(lambda: served.service.n_open == 2)
        clock = served.service.engine.clock
        now = clock.now()
        until(lambda: clock.now() > now + 0.05)
    answer = late.result()
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_exceeded"
    assert first.result().status_code == 200
    tree = httpx.get(f"{served.server.base_url}/cache", params={"preview": True}).json()
    assert all("Never" not in node["text"] for node in tree["nodes"])
    assert 'radixlab_samples_total{outcome="late"} 1.0' in served.metrics()


def test_a_request_that_takes_too_long_is_ended(served: Served) -> None:
    answer = served.ask(max_tokens=1900, timeout=0.05).result()
    assert answer.status_code == 504
    assert "output tokens" in answer.json()["error"]["message"]


def test_a_server_that_is_stopping_takes_nothing_more(served: Served) -> None:
    service = served.service
    service.draining = True
    try:
        refused = served.ask().result()
        assert refused.status_code == 503
        assert "retry-after" in refused.headers
        assert httpx.get(f"{served.server.base_url}/ready").status_code == 503
        assert httpx.get(f"{served.server.base_url}/health").status_code == 200
    finally:
        service.draining = False


def test_more_connections_than_allowed_are_turned_away() -> None:
    with serve(ServerConfig(port=0, max_connections=3, grace_s=0)) as server:
        address = httpx.URL(server.base_url)
        idle = [socket.create_connection((address.host, address.port or 0)) for _ in range(3)]
        try:
            assert httpx.get(f"{server.base_url}/health").status_code == 503
        finally:
            for connection in idle:
                connection.close()
        until(lambda: httpx.get(f"{server.base_url}/health").status_code == 200)
