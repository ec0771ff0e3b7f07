"""Load on an HTTP server from a process of its own: a job as JSON on standard input, the exchanges on standard output.

    python -m experiments.bench.http_load < job.json

So many clients keep one request each in flight. The client is as small as can be (no parsing of what it reads), since
on a small machine it takes its processor time from the server; it says how much it took.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import uvloop

_READ = 1 << 16
_TAIL = 2048
"""Bytes of an answer's end that hold its usage."""
_OUTPUT_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_END_OF_CHUNKS = b"0\r\n\r\n"


@dataclass(frozen=True)
class Job:
    host: str
    port: int
    bodies: list[dict[str, Any]]
    """Of POST /v1/completions, in the order in which they are sent."""
    clients: int
    cut_share: float = 0.0
    """Of the requests: their connection is broken off before their answer is whole."""
    seed: int = 0


class Exchange(NamedTuple):
    """One request. Seconds since the load began; tokens as the server's usage says."""

    sent: float
    first: float
    """When the first piece of the answer's body came."""
    done: float
    status: int
    """0: broken off."""
    output_tokens: int


@dataclass
class Load:
    """What came of a job."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process."""
    exchanges: list[Exchange] = field(default_factory=list)


async def run(job: Job) -> Load:
    """Raises OSError when the server can't be reached or hangs up without being asked to."""
    load = Load()
    todo = deque(job.bodies)
    rng = random.Random(job.seed)
    begun, cpu = time.perf_counter(), time.process_time()

    async def client() -> None:
        connection = None
        while todo:
            body = json.dumps(todo.popleft()).encode()
            cut = rng.random() < job.cut_share
            if connection is None:
                connection = await asyncio.open_connection(job.host, job.port)
            load.exchanges.append(
                await _exchange(*connection, job, body, begun, cut_after=rng.random() if cut else None)
            )
            if cut:
                connection[1].transport.abort()
                connection = None
        if connection is not None:
            connection[1].close()

    await asyncio.gather(*(client() for _ in range(job.clients)))
    load.seconds, load.cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    return load


async def _exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    job: Job,
    body: bytes,
    begun: float,
    *,
    cut_after: float | None,
) -> Exchange:
    """cut_after: break off after so many seconds at most, None: read all of it."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {job.host}:{job.port}\r\nContent-Type: application/json\r\n"
    sent = time.perf_counter() - begun
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    if cut_after is not None:
        try:
            async with asyncio.timeout(cut_after):
                await reader.read(_READ)
        except TimeoutError:
            pass
        now = time.perf_counter() - begun
        return Exchange(sent, now, now, 0, 0)
    answer_head = await reader.readuntil(b"\r\n\r\n")
    status = int(answer_head[9:12])
    length = re.search(rb"content-length: (\d+)", answer_head)
    if length is not None:
        tail = await reader.readexactly(int(length[1]))
        first = done = time.perf_counter() - begun
    else:
        tail = await reader.read(_READ)
        first = time.perf_counter() - begun
        while not tail.endswith(_END_OF_CHUNKS):
            more = await reader.read(_READ)
            if not more:
                raise ConnectionError("the server hung up before the stream's end")
            tail = tail[-_TAIL:] + more
        done = time.perf_counter() - begun
    found = _OUTPUT_TOKENS.findall(tail)
    return Exchange(sent, first, done, status, int(found[-1]) if found else 0)


def main() -> None:
    job = Job(**json.load(sys.stdin))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        json.dump(asdict(runner.run(run(job))), sys.stdout)


if __name__ == "__main__":
    main()
