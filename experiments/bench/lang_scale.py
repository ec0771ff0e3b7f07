"""Thousands of programs in flight at once: seconds to the last, and memory, each measurement in a process of its own.

python -m experiments.bench.lang_scale mock|tiny eager|async|compiled PROGRAMS     prints one as JSON
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import lang as sgl
from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.base import Backend, Call
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend

NEW_TOKENS = 4
WARM_UP = 16
"""Programs that run before anything is measured."""
TOKENS_A_PROGRAM = 256
CALLS_A_PROGRAM = 3
STATUS = Path("/proc/self/status")


@sgl.function
def three_calls(s: Any, topic: Any) -> None:
    """Reads each answer before it goes on."""
    s += f"{topic}: " + sgl.gen("first")
    s += f"\nAfter {s['first']}: " + sgl.gen("second")
    s += f"\nAfter {s['second']}: " + sgl.gen("third")


@sgl.function
async def three_awaited(s: Any, topic: Any) -> None:
    s += f"{topic}: " + sgl.gen("first")
    s += f"\nAfter {await s.get('first')}: " + sgl.gen("second")
    s += f"\nAfter {await s.get('second')}: " + sgl.gen("third")


class CountingMock(MockBackend):
    most = 0
    """Calls in flight."""

    def step(self) -> list[Call]:
        self.most = max(self.most, len(self._left))
        self.log.clear()
        return super().step()


class CountingEngine(EngineBackend):
    most = 0

    def step(self) -> list[Call]:
        self.most = max(self.most, len(self._open))
        return super().step()


def backend_named(name: str, programs: int) -> CountingMock | CountingEngine:
    if name == "mock":
        return CountingMock(steps_per_call=2)
    config = EngineConfig(
        model=name,
        device="cpu",
        pool_tokens=programs * TOKENS_A_PROGRAM,
        max_running=programs,
        max_batch_tokens=max(4096, programs),
    )
    return CountingEngine(make_engine(config, keep_history=False))


def run_all(variant: str, programs: int, backend: Backend) -> list[sgl.ProgramState]:
    """All at once. Raises ValueError for an unknown variant."""
    batch = [(f"Topic number {i}",) for i in range(programs)]
    sampling: dict[str, Any] = {"max_tokens": NEW_TOKENS, "temperature": 0.0, "ignore_eos": True}
    match variant:
        case "eager":
            return three_calls.run_batch(batch, backend=backend, **sampling)
        case "compiled":
            return three_calls.compile().run_batch(batch, backend=backend, **sampling)
        case "async":

            async def main() -> list[sgl.ProgramState]:
                return await three_awaited.run_batch_async(batch, backend=backend, **sampling)

            return asyncio.run(main())
    raise ValueError(f"unknown variant {variant!r}; available: async, compiled, eager")


def measure(name: str, variant: str, programs: int) -> dict[str, Any]:
    """One run. Memory is resident memory at its peak over what it was before, the states that are kept included.

    Raises RuntimeError when not all of them were in flight at once or one failed.
    """
    torch.set_num_threads(1)
    backend = backend_named(name, programs)
    run_all(variant, WARM_UP, backend)
    backend.flush_cache()
    gc.collect()
    _forget_peak()
    before = _resident("VmRSS")
    begun = time.perf_counter()
    states = run_all(variant, programs, backend)
    seconds = time.perf_counter() - begun
    peak = _resident("VmHWM")
    failed = [error for state in states if (error := state.error()) is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} programs failed, the first with: {failed[0]}")
    if backend.most < programs:
        raise RuntimeError(f"only {backend.most} of {programs} programs had a call in flight at once")
    memory = None if before is None or peak is None else (peak - before) / programs
    return {"seconds": seconds, "bytes_a_program": memory, "in_flight": backend.most}


def scale(sizes: dict[str, int], rounds: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Of each backend (with so many programs) and variant, in turns. Raises RuntimeError for what fails."""
    cells = [(name, variant) for name in sizes for variant in ("eager", "async", "compiled")]
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for _ in range(rounds):
        for name, variant in cells:
            found = _in_its_own_process(name, variant, sizes[name])
            runs[name, variant].append(found)
            say(f"{sizes[name]:,} programs on {name}, {variant}: {found['seconds']:.2f} s")
    rows = []
    for (name, variant), own in runs.items():
        memory = [run["bytes_a_program"] for run in own if run["bytes_a_program"] is not None]
        rows.append(
            {
                "backend": name,
                "variant": variant,
                "programs": sizes[name],
                "calls": CALLS_A_PROGRAM * sizes[name],
                "in_flight": min(run["in_flight"] for run in own),
                "seconds": [run["seconds"] for run in own],
                "seconds_median": statistics.median(run["seconds"] for run in own),
                "bytes_a_program": statistics.median(memory) if memory else None,
            }
        )
    return rows


def _in_its_own_process(name: str, variant: str, programs: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "experiments.bench.lang_scale", name, variant, str(programs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name}, {variant}, {programs} programs: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _resident(field: str) -> int | None:
    """Bytes, as Linux tells them."""
    with contextlib.suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None


def _forget_peak() -> None:
    """The peak counts from now; where the system doesn't allow that, what came before was smaller."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def main(arguments: Sequence[str]) -> int:
    name, variant, programs = arguments
    print(json.dumps(measure(name, variant, int(programs))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
