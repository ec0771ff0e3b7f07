"""Async programs: what one does from first to last, and how a plain `Runner` drives it, without an event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

from lang.output import Output
from lang.program_run import Awaited, Growth, ProgramRun

if TYPE_CHECKING:
    from lang.runner import Runner

CLEANUP_TURNS = 1000
"""How often a cancelled program may give way before it must be over."""
_inside: ContextVar[tuple[Runner, ProgramRun] | None] = ContextVar("program", default=None)


def executing() -> tuple[Runner, ProgramRun] | None:
    """The program that is executing now, if one is, and its runner. Tasks that an async program makes count as it."""
    return _inside.get()


def enter(runner: Runner, run: ProgramRun) -> None:
    """What runs in this context (a greenlet's, a task's) from now on is the program."""
    _inside.set((runner, run))


class Until:
    """What an async program tells who drives it: go on when this is finished."""

    def __init__(self, on: Awaited) -> None:
        self.on = on

    def __await__(self) -> Generator[Until, None, None]:
        yield self


async def live(runner: Runner, run: ProgramRun) -> None:
    """The program's whole life. What goes wrong is in the run."""
    try:
        run.state.ret_value = await run.program.fn(run.state, **run.args)
        await run.state.ready()
        run.state.text()
        rest: list[Awaited] = [*run.outputs, *run.children]
        for awaited in rest:  # nobody reads these: what went wrong there stays there
            await runner.until(awaited)
        if not run.finished:
            run.status = "done"
    except (asyncio.CancelledError, GeneratorExit):
        runner.mark_cancelled(run)
        raise
    except Exception as error:
        if run._coroutine is not None and isinstance(error, RuntimeError) and "event loop" in str(error):
            error.add_note(_instead(run))  # what asyncio itself refuses
        runner.mark_failed(run, error)
    except BaseException as error:
        runner.mark_failed(run, error)
        raise
    finally:
        runner.end(run)


def resume(runner: Runner, run: ProgramRun) -> None:
    """Until it waits for something, or is over."""
    if run._coroutine is None:
        run._coroutine = live(runner, run)
    thrown: Exception | None = None
    with _within(runner, run):
        while True:
            try:
                wanted = run._coroutine.send(None) if thrown is None else run._coroutine.throw(thrown)
            except StopIteration:
                return
            thrown = None
            if isinstance(wanted, Until):
                if not wanted.on.finished:
                    run._waits_for = wanted.on
                    wanted.on.waiters.append(run)
                    return
            elif wanted is None:  # asyncio.sleep(0)
                runner.rest(run)
                return
            else:
                thrown = _foreign(run, wanted)


def stop(runner: Runner, run: ProgramRun) -> None:
    """Raises CancelledError where it waits and lets its cleanup run, which has no answers to await any more."""
    coroutine = run._coroutine
    if coroutine is None:
        return
    with _within(runner, run), contextlib.suppress(StopIteration, asyncio.CancelledError):
        wanted = coroutine.throw(asyncio.CancelledError())
        for _ in range(CLEANUP_TURNS):
            wanted = coroutine.send(None) if wanted is None else coroutine.throw(_foreign(run, wanted))
        with contextlib.suppress(RuntimeError):  # it goes on for ever: end it, whatever it thinks of that
            coroutine.close()


def _foreign(run: ProgramRun, wanted: object) -> RuntimeError:
    return RuntimeError(f"program {run.name!r} awaits {wanted!r:.80}, which needs an event loop: {_instead(run)}")


def _instead(run: ProgramRun) -> str:
    return f"run it in asyncio code, with `await {run.program.name}.run_async(...)`"


@contextlib.contextmanager
def _within(runner: Runner, run: ProgramRun) -> Iterator[None]:
    token = _inside.set((runner, run))
    try:
        yield
    finally:
        _inside.reset(token)


def would_block(on: Awaited) -> RuntimeError:
    """For async code that reads what isn't there without awaiting it."""
    if isinstance(on, Output):
        named = on.expr.name is not None
        what, instead = f"{on.name} isn't there yet", f"await s.get({on.name})" if named else "await s.ready()"
    elif isinstance(on, ProgramRun):
        what = f"program {on.name!r} isn't over yet"
        instead = "await its run_async(...), or await state.get('x') or state.ready() of its state"
    else:
        name = repr(on.output.expr.name) if isinstance(on, Growth) else "'x'"
        what, instead = "the text isn't whole yet", f"async for piece in s.text_async_iter({name})"
    return RuntimeError(f"{what}, and async code must not block: {instead}")


def over(run: ProgramRun) -> RuntimeError:
    return RuntimeError(f"program {run.name!r} was {run.status} before this call finished")
