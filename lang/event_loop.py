"""Programs on asyncio's event loop: each async one is a task, and one task steps the backend for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent

from lang import coroutines
from lang.backends.base import Backend, Tags
from lang.coroutines import executing
from lang.program_run import Awaited, ProgramRun, Waiter
from lang.runner import Runner

if TYPE_CHECKING:
    from lang.function import Program

_runners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, LoopRunner]] = weakref.WeakKeyDictionary()
"""Those at work, by the id of their backend."""


def runner_of(backend: Backend) -> LoopRunner:
    """The one that all programs of the running loop on this backend share. Raises RuntimeError without a loop."""
    loop = asyncio.get_running_loop()
    return _runners.get(loop, {}).get(id(backend)) or LoopRunner(backend, loop)


class LoopRunner(Runner):
    """A Runner that is never stepped from outside: it steps the backend itself while it has programs.

    It steps when all programs have gone as far as they can, and lets other tasks have their turn between steps.
    """

    def __init__(self, backend: Backend, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(backend)
        self._loop = loop
        self._pump: asyncio.Task[None] | None = None
        self._stirring: set[object] = set()
        """What was woken or begun and hasn't had its turn yet."""
        self._asleep: set[_Asleep] = set()
        self._stirred = asyncio.Event()
        """A call was sent, a program is over, there is news: what the pump sleeps for."""
        self._news = False
        """The backend said that a step has something to return."""
        self._n_users = 0
        self._n_groups = 0
        """Whose calls are held back until those of all its programs have come."""
        self._drains = False
        self._broken: BaseException | None = None
        self.calls.stirred = self._stirred.set

    # ---- programs

    def sleep(self, run: ProgramRun, seconds: float) -> None:
        raise RuntimeError(f"program {run.name!r}: s.sleep() isn't served on an event loop; use run or run_batch")

    def launch(self, run: ProgramRun) -> None:
        """An async program begins in a task of its own, at the loop's next turn."""
        if run.program.is_async:
            self._stirring.add(run)
            run._task = self._loop.create_task(self._alive(run), name=run.name)
            run._task.add_done_callback(lambda task: self._gone(run, task))
        else:
            self._ready.append(run)
            self._drain_soon()
        self._begin_work()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """More programs may come, even when all are over: it must stay the one that `runner_of` gives."""
        self._n_users += 1
        self._begin_work()
        try:
            yield
        finally:
            self._n_users -= 1
            self._stirred.set()

    def begin(self, program: Program, kwargs: Mapping[str, Any], sampling: Mapping[str, Any], name: str) -> ProgramRun:
        """A program that no other one runs."""
        run = self._new(program, kwargs, Tags(name), sampling)
        self.launch(run)
        return run

    async def begin_together(self, begin: Callable[[], None]) -> None:
        """The calls of programs that `begin` begins are sent when all have gone as far as they can; what they have in
        common at their beginning is cached first."""
        self._n_groups += 1
        try:
            with self.calls.grouped() as group:
                begin()
            await self.quiet()
            self.calls.release(group)
        finally:
            self._n_groups -= 1
            self._stirred.set()

    async def _alive(self, run: ProgramRun) -> None:
        self._stirring.discard(run)
        coroutines.enter(self, run)
        await coroutines.live(self, run)

    def _gone(self, run: ProgramRun, task: asyncio.Task[None]) -> None:
        """Its task is over; perhaps it was cancelled before it began."""
        if not task.cancelled():
            task.exception()  # an interrupt: the loop itself raises it
        self._stirring.discard(run)
        self.mark_cancelled(run)
        self.end(run)

    def start_inside(
        self,
        outer: ProgramRun,
        program: Program,
        kwargs: Mapping[str, Any],
        sampling: Mapping[str, Any] | None = None,
    ) -> ProgramRun:
        """An async program begins at the loop's next turn; `outer` goes on before it."""
        if not program.is_async:
            if outer.program.is_async:
                self._hub = getcurrent()
            return super().start_inside(outer, program, kwargs, sampling)
        run = self._new(program, kwargs, self._tags_within(outer, program), sampling, parent=outer)
        self.launch(run)
        return run

    def cancel(self, run: ProgramRun) -> None:
        """A task's cleanup runs at the loop's next turn."""
        task = run._task
        if task is None:
            super().cancel(run)
        elif not run.finished:
            if task is asyncio.current_task():
                raise RuntimeError(f"program {run.name!r} can't cancel itself; return or raise instead")
            self.mark_cancelled(run)
            self.end(run)
            task.cancel()

    async def cancel_all(self, runs: Sequence[ProgramRun]) -> None:
        for run in runs:
            self.cancel(run)
        if tasks := [run._task for run in runs if run._task is not None]:
            await asyncio.wait(tasks)

    def end(self, run: ProgramRun) -> None:
        super().end(run)
        self._finished.clear()  # nobody asks
        self._stirred.set()

    # ---- waiting

    def wait(self, on: Awaited) -> None:
        """Inside of a program that isn't async; everything else must await."""
        inside = executing()
        if not on.finished and (inside is None or inside[0] is not self):
            raise coroutines.would_block(on)
        super().wait(on)

    async def until(self, on: Awaited) -> None:
        while not on.finished:
            inside = executing()
            if inside is not None and inside[0] is self and inside[1].finished:
                raise coroutines.over(inside[1])
            if self._broken is not None:
                raise self._broken
            asleep = _Asleep(self._loop.create_future(), self._stirring)
            on.waiters.append(asleep)
            self._asleep.add(asleep)
            try:
                await asleep.future
            finally:
                self._asleep.discard(asleep)
                self._stirring.discard(asleep)

    async def until_one_of(self, runs: Sequence[ProgramRun]) -> None:
        """Until one of them is over."""
        first = _First(self._wake)
        for run in runs:
            run.waiters.append(first)
        await self.until(first)

    async def quiet(self) -> None:
        """Until everything has gone as far as it can without a step."""
        calm = 0
        while calm < 2:  # a task may be about to make others
            await asyncio.sleep(0)
            calm = 0 if self._stirring else calm + 1

    def _wake(self, awaited: Awaited) -> None:
        super()._wake(awaited)
        if self._ready:
            self._drain_soon()

    def _drain_soon(self) -> None:
        if not self._drains:
            self._drains = True
            self._stirring.add(self)
            self._loop.call_soon(self._drain_now)

    def _drain_now(self) -> None:
        self._drains = False
        self._stirring.discard(self)
        self._hub = getcurrent()
        self._drain()

    # ---- stepping

    def _begin_work(self) -> None:
        if self._pump is None:
            _runners.setdefault(self._loop, {})[id(self.backend)] = self
            self._pump = self._loop.create_task(self._work(), name="steps of a backend")

    async def _work(self) -> None:
        """The pump: as long as there are programs, or may be."""
        listens = self.backend.notify(self._tell)
        try:
            await self.quiet()
            while self._running or self._n_users:
                await self._step(listens)
                await self.quiet()
        except BaseException as error:
            self._break(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self.backend.notify(None)
            self._pump = None
            _runners.get(self._loop, {}).pop(id(self.backend), None)

    async def _step(self, listens: bool) -> None:
        """A step, or a sleep until there may be reason for one."""
        self._stirred.clear()
        if self._n_groups or not self._running:
            await self._stirred.wait()
        elif self.calls.open and (self.calls.mail or self._news or not listens):
            rest = 0.0 if self.calls.mail else self.backend.rest()
            if not rest:
                self._news = False
                self.advance()
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stirred.wait(), rest)
        elif self.calls.open or any(run.program.is_async for run in self._running):
            await self._stirred.wait()
        else:
            self.advance()  # says who waits in vain

    def _tell(self) -> None:
        """From any thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._heard)

    def _heard(self) -> None:
        self._news = True
        self._stirred.set()

    def _break(self, error: BaseException) -> None:
        """Nobody steps any more: all that waits is told why."""
        self._broken = error
        for asleep in list(self._asleep):
            asleep.fail(error)
        for run in list(self._running):
            if not run.program.is_async:
                run.error = error if isinstance(error, Exception) else None
                self.cancel(run)


class _First:
    """One of several has finished."""

    def __init__(self, wake: Callable[[Awaited], None]) -> None:
        self.waiters: list[Waiter] = []
        self.finished = False
        self._wake = wake

    def wake(self) -> None:
        self.finished = True
        self._wake(self)


class _Asleep:
    """A task that waits for something in this runner."""

    def __init__(self, future: asyncio.Future[None], stirring: set[object]) -> None:
        self.future = future
        self._stirring = stirring

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
            self._stirring.add(self)

    def fail(self, error: BaseException) -> None:
        if self.future.done():
            return
        if isinstance(error, Exception):
            self.future.set_exception(error)
        else:
            self.future.cancel()
