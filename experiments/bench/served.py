"""`python -m engine.server` that can be looked into: the process the server's benchmark runs.

    python -m experiments.bench.served model=tiny port=0

For each line on standard input it writes one of JSON: what the process has used so far, after its garbage was collected
and free memory was given back to the system. The end of the input ends the process.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
import threading
import time
from typing import NamedTuple

from engine.engine import Engine
from engine.request import Request
from engine.server.__main__ import main as serve


class Used(NamedTuple):
    rss_bytes: int
    cpu_seconds: float
    """Of all threads."""
    steps: int
    """Of the engine, with rows or without."""
    step_seconds: float
    """Wall clock in them."""


class StepWatch:
    """Times each step of every engine of this process."""

    def __init__(self) -> None:
        self.steps = 0
        self.seconds = 0.0

    def install(self) -> None:
        step = Engine.step

        def timed(engine: Engine) -> list[Request]:
            begun = time.perf_counter()
            try:
                return step(engine)
            finally:
                self.steps += 1
                self.seconds += time.perf_counter() - begun

        Engine.step = timed  # type: ignore[method-assign, assignment]


def settled_rss() -> int:
    """Bytes of memory in use, free ones given back first where the C library can (glibc)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> int:
    watch = StepWatch()
    watch.install()

    def answer() -> None:
        for _ in sys.stdin:
            used = Used(settled_rss(), time.process_time(), watch.steps, watch.seconds)
            print(json.dumps(used._asdict()), flush=True)
        os._exit(0)

    threading.Thread(target=answer, name="answers", daemon=True).start()
    return serve(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
