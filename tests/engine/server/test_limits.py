"""What one connection may send, and how long it may take: past that it is told so and closed."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve

ASK = {"model": "tiny", "prompt": "Once", "max_tokens": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    config = ServerConfig(
        port=0,
        grace_s=0,
        max_body_bytes=20_000,
        max_header_bytes=4096,
        header_timeout_s=0.3,
        body_timeout_s=0.3,
        keep_alive_s=1,
    )
    with serve(config) as server:
        yield server


def send(server: LiveServer, *parts: bytes) -> tuple[int, dict[str, Any]]:
    """Sends the parts, and reads until the server closes the connection."""
    address = httpx.URL(server.base_url)
    with closing(socket.create_connection((address.host, address.port or 0), timeout=20)) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(server: LiveServer) -> None:
    status, error = send(
        server,
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"content-length: 20001\r\n\r\n",
    )
    assert (status, error["code"]) == (413, "body_too_large")
    assert "20000" in error["message"]


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(server: LiveServer) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 5000

    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.base_url}/v1/completions", content=endless(), headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_that_a_web_page_could_send_anywhere_is_refused(server: LiveServer, kind: str) -> None:
    answer = httpx.post(
        f"{server.base_url}/v1/completions", content=json.dumps(ASK).encode(), headers={"content-type": kind}
    )
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_within_the_limit_is_served(server: LiveServer) -> None:
    assert httpx.post(f"{server.base_url}/v1/completions", json=ASK | {"user": "x" * 1000}).status_code == 200


def test_a_body_that_trickles_in_is_given_up(server: LiveServer) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    status, error = send(server, head, b'{"model"')
    assert status == 408
    assert "0.3 s" in error["message"]


def test_headers_that_trickle_in_are_given_up(server: LiveServer) -> None:
    status, error = send(server, b"GET /health HTTP/1.1\r\nhost: x\r\n")
    assert (status, error["code"]) == (408, "too_slow")


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""], ids=["whole", "unfinished"])
def test_headers_that_are_too_large_are_refused(server: LiveServer, end: bytes) -> None:
    status, error = send(server, b"GET /health HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * 5000 + end)
    assert (status, error["code"]) == (431, "headers_too_large")


def test_what_is_no_http_is_told_so(server: LiveServer) -> None:
    status, error = send(server, b"\x16\x03\x01 is how TLS begins\r\n\r\n")
    assert (status, error["code"]) == (400, "invalid_http")


def test_a_connection_is_kept_for_the_next_request(server: LiveServer) -> None:
    with httpx.Client(base_url=server.base_url) as client:
        for _ in range(3):
            assert client.post("/v1/completions", json=ASK).status_code == 200
        assert len(client._transport._pool.connections) == 1  # type: ignore[attr-defined]


def test_a_name_that_is_not_this_machines_own_is_refused_where_there_are_no_keys() -> None:
    with serve(hosts=("localhost", "127.0.0.1")) as server:
        assert httpx.get(f"{server.base_url}/health").status_code == 200
        refused = httpx.get(f"{server.base_url}/health", headers={"host": "evil.example:80"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
