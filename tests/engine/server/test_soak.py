"""Hundreds of good, bad and broken-off requests at once: afterwards nothing is left of them.

RADIXLAB_SOAK_REQUESTS: how many, instead of 400.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from engine.config import EngineConfig
from engine.request import SamplingParams
from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve

REQUESTS = int(os.environ.get("RADIXLAB_SOAK_REQUESTS", "400"))
AT_ONCE = 24
BUSY = {429, 503}
"""What any request for tokens may be told when there are too many."""
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"enum": ["small", "large"]}},
    "required": ["name", "size"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    """Short of everything: pages, places in the queue, room for a body."""
    config = ServerConfig(port=0, max_waiting=48, max_body_bytes=20_000, stream_buffer=64, body_timeout_s=1.0)
    with serve(config, EngineConfig(model="tiny", device="cpu", pool_tokens=2048, max_running=16)) as server:
        yield server


class Client:
    """Sends one request of a kind; asserts that the answer is one of those that the kind allows."""

    def __init__(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        self.http = http
        self.rng = rng
        self.host, self.port = http.base_url.host, http.base_url.port
        self.seen: Counter[tuple[str, int]] = Counter()

    def prompt(self) -> str:
        """Some share a prefix."""
        return f"Family {self.rng.randrange(5)} begins alike. " * 3 + str(self.rng.randrange(1000))

    def completion(self, **more: Any) -> dict[str, Any]:
        return {"model": "tiny", "prompt": self.prompt(), "max_tokens": self.rng.randint(1, 40), **more}

    def chat(self, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": self.prompt()}]
        return {"model": "tiny", "messages": messages, "max_tokens": self.rng.randint(1, 40), **more}

    async def post(self, path: str, body: Any, allowed: set[int]) -> httpx.Response:
        return self.judge(path, await self.http.post(path, json=body), allowed)

    def judge(self, path: str, answer: httpx.Response, allowed: set[int]) -> httpx.Response:
        self.seen[path, answer.status_code] += 1
        assert answer.status_code in allowed, f"{path}: {answer.status_code} {answer.text[:300]}"
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]
        return answer

    # ---- good ones

    async def whole(self) -> None:
        answer = await self.post("/v1/completions", self.completion(n=self.rng.randint(1, 4)), {200} | BUSY)
        if answer.status_code == 200:
            assert all(choice["finish_reason"] in ("stop", "length") for choice in answer.json()["choices"])

    async def streamed(self) -> None:
        async with self.http.stream("POST", "/v1/completions", json=self.completion(stream=True, n=2)) as answer:
            lines = [line async for line in answer.aiter_lines() if line]
            self.seen["/v1/completions stream", answer.status_code] += 1
            assert answer.status_code in {200} | BUSY
            if answer.status_code == 200:
                assert lines[-1] == "data: [DONE]"

    async def many_prompts(self) -> None:
        prompts = [self.prompt() for _ in range(self.rng.randint(2, 5))]
        await self.post("/v1/completions", self.completion(prompt=prompts, logprobs=2), {200} | BUSY)

    async def constrained(self) -> None:
        pattern = self.rng.choice(["(yes|no), (maybe|never)", "[a-f]{3}-[0-9]{2,4}", "a{2}b*c"])
        answer = await self.post("/v1/completions", self.completion(regex=pattern), {200} | BUSY)
        if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop":
            assert re.fullmatch(pattern, answer.json()["choices"][0]["text"])

    async def json_chat(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
        answer = await self.post("/v1/chat/completions", self.chat(response_format=form, max_tokens=120), {200} | BUSY)
        if answer.status_code == 200 and answer.json()["choices"][0]["finish_reason"] == "stop":
            assert json.loads(answer.json()["choices"][0]["message"]["content"]).keys() == {"name", "size"}

    async def message(self) -> None:
        await self.post("/v1/messages", self.chat(), {200} | BUSY)

    async def native(self) -> None:
        body = {"text": self.prompt(), "sampling_params": {"max_new_tokens": 8}}
        await self.post("/generate", body, {200} | BUSY)

    async def late(self) -> None:
        await self.post("/v1/completions", self.completion(timeout=self.rng.uniform(0.001, 0.1)), {200, 504} | BUSY)

    async def operation(self) -> None:
        path = self.rng.choice(["/health", "/ready", "/metrics", "/cache", "/v1/models"])
        self.judge(path, await self.http.get(path), {200})

    async def flush(self) -> None:
        self.judge("/flush_cache", await self.http.post("/flush_cache"), {200})

    # ---- bad ones

    async def refused(self) -> None:
        body, status = self.rng.choice(
            [
                (self.completion(temperature="warm"), 400),
                (self.completion(prompt=[[1], "two"]), 400),
                (self.completion(prompt=[5] * 3000), 400),
                (self.completion(regex="(unclosed"), 400),
                (self.completion(json_schema={"type": "no such type"}), 400),
                (self.completion(ebnf="root ::= missing"), 400),
                (self.completion(model="other"), 404),
                (self.completion(nonsense=1), 400),
                ([1, 2, 3], 400),
                ("text", 400),
            ]
        )
        await self.post("/v1/completions", body, {status} | BUSY)

    async def no_json(self) -> None:
        content = self.rng.choice(
            [
                b"",
                b"{",
                b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
                b'{"model": "tiny", "prompt": "x", "temperature": 1e999}',
                b'{"model": "tiny", "prompt": "\\ud800"}',
                b'{"model": "tiny", "prompt": "\xff\xfe"}',
                b"[" * 9000,
                b'{"a":' * 3000,
            ]
        )
        headers = {"content-type": "application/json"}
        answer = await self.http.post("/v1/completions", content=content, headers=headers)
        self.judge("no JSON", answer, {400} | BUSY)

    async def huge(self) -> None:
        answer = await self.http.post("/v1/completions", json=self.completion(prompt="x" * 30_000))
        self.judge("huge", answer, {413})

    async def elsewhere(self) -> None:
        self.judge("elsewhere", await self.http.get("/v1/completions"), {405})
        self.judge("elsewhere", await self.http.post("/v2/completions", json={}), {404})

    # ---- broken-off ones

    async def cut(self) -> None:
        """Sends all of a request or a part, reads some of the answer or nothing, and is gone."""
        body = json.dumps(self.completion(max_tokens=400, ignore_eos=True, stream=self.rng.random() < 0.7)).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        sent = (head + "Content-Type: application/json\r\n\r\n").encode() + body
        reader, writer = await asyncio.open_connection(self.host, self.port)
        part = self.rng.random() < 0.3
        writer.write(sent[: self.rng.randrange(len(sent))] if part else sent)
        await writer.drain()
        if not part and self.rng.random() < 0.7:
            await reader.read(self.rng.randint(1, 3000))
        else:
            await asyncio.sleep(self.rng.uniform(0, 0.05))
        if self.rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()
        self.seen["cut", 0] += 1

    def kinds(self) -> list[Callable[[], Awaitable[None]]]:
        good = [self.whole, self.streamed, self.many_prompts, self.constrained, self.json_chat, self.message]
        rest = [self.native, self.late, self.operation, self.flush, self.refused, self.no_json, self.huge]
        return [*good, *rest, self.elsewhere, self.cut, self.cut, self.cut]


async def send(base_url: str, n: int, seed: int) -> Counter[tuple[str, int]]:
    """Each kind once, then `n` more at random, `AT_ONCE` in flight."""
    limits = httpx.Limits(max_connections=AT_ONCE)
    async with httpx.AsyncClient(base_url=base_url, limits=limits, timeout=30) as http:
        client = Client(http, random.Random(seed))
        todo = client.kinds() + client.rng.choices(client.kinds(), k=n)

        async def worker() -> None:
            while todo:
                await todo.pop()()

        await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
        return client.seen


async def until(true: Callable[[], bool]) -> bool:
    """False if it isn't so within some seconds."""
    for _ in range(500):
        if true():
            return True
        await asyncio.sleep(0.02)
    return False


def test_nothing_is_left_of_any_request(server: LiveServer) -> None:
    service, engine = server.state.service, server.state.service.engine

    def idle() -> bool:
        return not service.thread.call(lambda: engine.has_work).result(timeout=10)

    asyncio.run(send(server.base_url, 60, seed=1))  # threads that are made once are there now
    assert asyncio.run(until(idle))
    threads = {thread.name for thread in threading.enumerate()}

    seen = asyncio.run(send(server.base_url, REQUESTS, seed=2))

    assert asyncio.run(until(idle)), "requests of clients that are gone are still under way"
    assert asyncio.run(until(lambda: not service._streams)), f"{len(service._streams)} streams are left"
    pool, cache = engine.memory.pool, engine.memory.cache
    service.thread.call(engine.check).result(timeout=10)
    cached_pages = cache.cached_tokens // engine.config.page_size
    assert pool.n_free + cached_pages == pool.n_pages
    assert not engine.scheduler.running
    assert not engine.scheduler.waiting
    assert not service.thread._live
    assert not service.thread._by_sample
    service.thread.call(engine.flush_cache).result(timeout=10)
    assert pool.n_free == pool.n_pages, "something is still locked in the cache"
    assert {thread.name for thread in threading.enumerate()} <= threads
    answered = sum(n for (_, status), n in seen.items() if status == 200)
    assert answered > REQUESTS // 5, f"most were turned away: {seen}"
    assert httpx.get(server.base_url + "/ready").status_code == 200


def test_a_client_gone_before_its_request_was_queued_harms_nobody(server: LiveServer) -> None:
    thread = server.state.service.thread
    hold = threading.Event()
    thread.call(hold.wait)
    adding = thread.add([], [5, 6, 7], SamplingParams(max_tokens=1), due=0.0, deadline=None)
    assert adding.cancel()
    hold.set()
    assert thread.call(lambda: 7 * 6).result(timeout=10) == 42
    assert not thread.call(lambda: thread.engine.has_work).result(timeout=10)
