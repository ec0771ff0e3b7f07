"""`run_async` and `run_batch_async`: programs from asyncio code, and from async programs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from lang.backends.base import Backend
from lang.coroutines import executing
from lang.event_loop import LoopRunner, runner_of
from lang.program_run import ProgramRun
from lang.progress import progress

if TYPE_CHECKING:
    from lang.function import Program

Args = Mapping[str, Any]


async def one(program: Program, kwargs: Args, sampling: Args, backend: Backend) -> ProgramRun:
    """Once it has finished. Raises what it raised."""
    inside = executing()
    if inside is not None and inside[0].backend is backend:
        (run,) = await inside[0].run_inside_async(inside[1], program, [kwargs], sampling, None)
    else:
        runner = runner_of(backend)
        async with aclosing(_each(program, [kwargs], sampling, runner, None)) as runs:
            run = await anext(runs)
    if run.error is not None:
        raise run.error
    if run.status == "cancelled":
        raise asyncio.CancelledError(f"program {run.name!r} was cancelled")
    return run


def started(program: Program, kwargs: Args, sampling: Args, backend: Backend) -> ProgramRun:
    """At once."""
    inside = executing()
    if inside is not None and inside[0].backend is backend:
        return inside[0].start_inside(inside[1], program, kwargs, sampling)
    return runner_of(backend).begin(program, kwargs, sampling, f"{program.name}-0")


async def each(
    program: Program, batch: Sequence[Args], sampling: Args, backend: Backend, limit: int | None, progress_bar: bool
) -> AsyncGenerator[ProgramRun, None]:
    """In the order of `batch`, each as soon as it and those before it are over; from within a program all at the end.
    Those that are still running when nobody wants more are cancelled."""
    inside = executing()
    if inside is not None and inside[0].backend is backend:
        for run in await inside[0].run_inside_async(inside[1], program, batch, sampling, limit):
            yield run
        return
    with progress(program.name, len(batch) if progress_bar else 0) as advance:
        async with aclosing(_each(program, batch, sampling, runner_of(backend), limit)) as runs:
            async for run in runs:
                advance(1)
                yield run


async def _each(
    program: Program, batch: Sequence[Args], sampling: Args, runner: LoopRunner, limit: int | None
) -> AsyncGenerator[ProgramRun, None]:
    runs: list[ProgramRun] = []
    given = 0

    def start() -> None:
        if len(runs) == len(batch):
            return
        room = len(batch) if limit is None else limit - sum(not run.finished for run in runs[given:])
        for item in batch[len(runs) : len(runs) + room]:
            runs.append(runner.begin(program, item, sampling, f"{program.name}-{len(runs)}"))

    with runner.in_use():
        try:
            await runner.begin_together(start)
            while given < len(batch):
                start()
                if runs[given].finished:
                    yield runs[given]
                    given += 1
                elif len(runs) == len(batch):
                    await runner.until(runs[given])
                else:
                    await runner.until_one_of([run for run in runs[given:] if not run.finished])
        finally:
            if given < len(batch):
                await runner.cancel_all(runs[given:])
