"""A server as its own process: it says where it listens, closes in good order, and its exit code tells how it ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from engine.log import Log
from tests.conftest import REPOSITORY
from tests.engine.server.conftest import until

LONG = {"model": "tiny", "prompt": [5, 6, 7], "max_tokens": 16_000, "ignore_eos": True}
DYING = """
import sys
from engine.executor.base import ExecutorDead
from engine.executor.cpu import CpuExecutor
from engine.server.__main__ import main
def launch(self, batch):
    raise ExecutorDead("the device is gone")
CpuExecutor.launch = launch
sys.exit(main(sys.argv[1:]))
"""


class Process:
    def __init__(self, *arguments: str, program: tuple[str, ...] = ("-m", "engine.server")) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "RADIXLAB_API_KEYS"}
        environment["OMP_NUM_THREADS"] = "1"  # on busy cores a tiny model's threads mostly wait for one another
        command = [sys.executable, *program, "port=0", "engine.device=cpu", "engine.pool_tokens=40000", *arguments]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        found = re.search(r"http://\S+", self.line)
        self.base_url = found[0] if found else ""

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Its exit code and what it said of errors."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def ask(self, **changes: object) -> httpx.Response:
        return httpx.post(f"{self.base_url}/v1/completions", json=LONG | changes, timeout=60)

    def running(self) -> float:
        lines = httpx.get(f"{self.base_url}/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("radixlab_running "))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def test_what_is_under_way_finishes_and_nothing_more_is_taken(threads: ThreadPoolExecutor, tmp_path: Path) -> None:
    record = tmp_path / "events.parquet"
    server = Process("grace_s=25", f"record={record}", "policy=slru")
    assert re.fullmatch(
        r"radixlab serves tiny at http://127\.0\.0\.1:\d+ \(policy slru, pool 40000 tokens\)\n", server.line
    )
    under_way = threads.submit(server.ask, max_tokens=1500)
    until(lambda: server.running() == 1)
    server.tell(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.base_url}/ready").status_code == 503)
    refused = server.ask(max_tokens=1)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1
    answer = under_way.result()
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 1500
    code, errors = server.end()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert next(event.kind for event in Log.read(record).inputs()) == "arrive"


def test_what_is_not_done_when_the_grace_is_over_is_ended(threads: ThreadPoolExecutor) -> None:
    server = Process("grace_s=0")
    under_way = threads.submit(server.ask)
    until(lambda: server.running() == 1)
    server.tell(signal.SIGINT)
    answer = under_way.result()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    code, errors = server.end()
    assert code == 0, errors
    assert "Traceback" not in errors


def test_a_second_signal_stops_at_once(threads: ThreadPoolExecutor) -> None:
    server = Process("grace_s=600")
    under_way = threads.submit(server.ask)
    until(lambda: server.running() == 1)
    server.tell(signal.SIGTERM)
    until(lambda: httpx.get(f"{server.base_url}/ready").status_code == 503)
    server.tell(signal.SIGTERM)
    assert server.end()[0] == 128 + signal.SIGTERM
    with pytest.raises(httpx.HTTPError):
        under_way.result()


def test_a_dead_engine_ends_the_process_with_an_error() -> None:
    server = Process(program=("-c", DYING))
    answer = server.ask(max_tokens=3)
    assert answer.status_code == 500
    code, errors = server.end()
    assert code == 1
    assert "the device is gone" in errors


def test_other_machines_are_not_served_without_keys_unless_one_says_so() -> None:
    code, errors = Process("host=0.0.0.0").end()
    assert code == 2
    assert "no API keys" in errors
    assert errors.count("\n") == 1
