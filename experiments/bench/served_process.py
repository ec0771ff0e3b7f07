"""A server and the load on it, each in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from experiments.bench.http_load import Exchange, Job, Load
from experiments.bench.served import Used


class ServedProcess:
    """`python -m experiments.bench.served` on a free port. Raises RuntimeError if it can't start."""

    def __init__(self, settings: Sequence[str], threads: int) -> None:
        command = [sys.executable, "-m", "experiments.bench.served", "port=0", *settings]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        found = re.search(r"http://\S+", self._line())
        if found is None:
            self.close()
            raise RuntimeError(f"the server didn't start: {' '.join(command)}")
        self.url = found.group()

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def used(self) -> Used:
        """What it has used so far, its free memory given back first."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Used(**json.loads(self._line()))

    def load(self, bodies: Sequence[dict[str, Any]], clients: int, *, cut_share: float = 0.0, seed: int = 0) -> Load:
        """Raises RuntimeError when an exchange goes wrong."""
        address = urlsplit(self.url)
        assert address.hostname is not None
        assert address.port is not None
        job = Job(address.hostname, address.port, list(bodies), clients, cut_share, seed)
        done = subprocess.run(
            [sys.executable, "-m", "experiments.bench.http_load"],
            input=json.dumps(asdict(job)),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError("the load generator failed; what it said stands above")
        data = json.loads(done.stdout)
        load = Load(data["seconds"], data["cpu_seconds"], [Exchange(*fields) for fields in data["exchanges"]])
        refused = [exchange.status for exchange in load.exchanges if exchange.status not in (0, 200)]
        if refused:
            raise RuntimeError(f"{len(refused)} of {len(bodies)} requests were refused, the first with {refused[0]}")
        return load

    def cache(self) -> dict[str, Any]:
        """The state of the cache, without its nodes."""
        with urllib.request.urlopen(f"{self.url}/cache?limit=0", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def flush(self) -> None:
        """Empties the cache."""
        with urllib.request.urlopen(f"{self.url}/flush_cache", data=b"", timeout=60):
            pass

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def __enter__(self) -> ServedProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
