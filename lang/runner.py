"""Runs many programs on one thread: each is a greenlet that gives way when it needs an answer that isn't there yet.

Async ones are coroutines instead, which give way where they await (see `lang.coroutines`). Nothing here depends on time
or on a thread's whims, so the order in which calls reach the backend can be repeated.
"""

from __future__ import annotations

import asyncio
import traceback
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from greenlet import GreenletExit, getcurrent, greenlet

from lang import coroutines
from lang.backends.base import Backend, Tags
from lang.calls import Calls
from lang.coroutines import executing
from lang.output import FirstOf, Output, Trunk
from lang.program_run import Awaited, Growth, ProgramRun, Progress
from lang.sampling import Sampling, overrides
from lang.state import ProgramState
from lang.timers import Timers

if TYPE_CHECKING:
    from lang.function import Program

__all__ = ["ProgramRun", "Runner", "executing"]

_DEFAULTS = Sampling()


class Runner:
    """Starts programs on a backend, steps it and wakes the programs whose answers came. One thread only."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._hub = getcurrent()
        self._ready: deque[ProgramRun] = deque()
        self.calls = Calls(backend, self._wake)
        self._running: set[ProgramRun] = set()
        self._finished: list[ProgramRun] = []
        self._started = 0
        self._growths: list[Growth | FirstOf] = []
        self._resting: list[ProgramRun] = []
        """Go on after the next step, whatever it brings."""
        self._timers = Timers()

    @property
    def active(self) -> int:
        """Programs started and not finished, those started by programs included."""
        return len(self._running)

    @property
    def idle_until(self) -> float | None:
        """When the next sleeping program goes on, seconds on the backend's clock, if nothing can be done before."""
        busy = self.calls.open or self._resting or self._ready or self._growths
        return None if busy else self._timers.next

    def start(
        self,
        program: Program,
        kwargs: Mapping[str, Any],
        *,
        due: float | None = None,
        name: str = "",
        client: str = "",
        conversation: str = "",
        namespace: str = "",
        priority: int = 0,
        sampling: Mapping[str, Any] | Sampling | None = None,
    ) -> ProgramRun:
        """Runs the program until it first waits. `due`: when it should have started, seconds (default: now).

        `sampling` holds defaults for its calls, or is all of them. Raises TypeError for arguments that the program
        doesn't take; what goes wrong inside the program is in `ProgramRun.error`.
        """
        inside = executing()
        if inside is not None and inside[0] is self:
            raise RuntimeError("a program starts others with run() or run_batch(), not through its own runner")
        run = self._new(program, kwargs, Tags(name, client, conversation, namespace, priority, due), sampling)
        self._hub = getcurrent()
        self._ready.append(run)
        self._drain()
        return run

    def step(self) -> list[ProgramRun]:
        """One step of the backend (none while nothing waits for it); the programs that finished since the last call."""
        self.advance()
        finished, self._finished = self._finished, []
        return finished

    def advance(self) -> None:
        """One step of the backend, and of the programs whose answers came. Nothing when no program runs.

        Where all programs sleep, the backend's clock does too."""
        self._hub = getcurrent()
        if (until := self.idle_until) is not None:
            self.backend.clock.sleep_until(until)
        self._ring()
        if self.calls.open or self._resting:
            if self.calls.open:
                self.calls.step()
            self._ready.extend(self._resting)
            self._resting.clear()
            self._wake_readers()
            self._drain()
        elif self._running:
            self._wake_readers()
            if self._ready or until is not None:
                self._drain()
                return
            names = ", ".join(sorted(run.name for run in self._running)[:5])
            raise RuntimeError(f"programs wait, but none of their calls is under way: {names}")

    def cancel(self, run: ProgramRun) -> None:
        """Ends the program where it waits (its `finally` blocks run) and aborts its calls.

        `step` returns it as finished, with status "cancelled". Finished runs stay as they are.
        """
        if run.finished:
            return
        if getcurrent() is run._greenlet or getattr(run._coroutine, "cr_running", False):
            raise RuntimeError(f"program {run.name!r} can't cancel itself; return or raise instead")
        self.mark_cancelled(run)
        for queue in (self._ready, self._resting):
            if run in queue:
                queue.remove(run)
        coroutines.stop(self, run)
        greenlet_ = run._greenlet
        if greenlet_:
            greenlet_.parent = getcurrent()
            greenlet_.throw(GreenletExit)
        self.end(run)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Calls made within are sent at its end; what all of them begin with is cached first."""
        with self.calls.together():
            yield
        self._wake_readers()
        self._drain()

    # ---- what programs ask

    def wait(self, on: Awaited) -> None:
        """Until it is finished: gives way inside a program, steps the backend outside."""
        inside = executing()
        while not on.finished:
            if inside is not None and inside[1].program.is_async:
                raise coroutines.would_block(on)
            if inside is None or inside[0] is not self:
                self.advance()
                continue
            run = inside[1]
            if run.finished:
                raise coroutines.over(run)
            run._waits_for = on
            on.waiters.append(run)
            self._hub.switch()

    async def until(self, on: Awaited) -> None:
        """As `wait`, in async code; outside of a program other tasks have their turn after each step."""
        while not on.finished:
            inside = executing()
            if inside is None or inside[0] is not self:
                self.advance()
                await asyncio.sleep(0)
                continue
            if inside[1].finished:
                raise coroutines.over(inside[1])
            await coroutines.Until(on)

    def growth(self, output: Output, seen: int) -> Growth:
        """Finished when there is more of its text than `seen` characters, or all of it."""
        self.watch(output)
        growth = Growth(output, seen)
        if not growth.finished:
            self._growths.append(growth)
        return growth

    def sleep(self, run: ProgramRun, seconds: float) -> None:
        """The program goes on after so many seconds of the backend's clock. Raises TypeError in an async program."""
        if run.program.is_async:
            raise TypeError(f"program {run.name!r} is async: s.sleep() isn't served there; write it without async")
        self.wait(self._timers.set(self.backend.clock.now() + seconds))

    def _ring(self) -> None:
        for timer in self._timers.due(self.backend.clock.now()):
            self._wake(timer)

    def wrote(self, run: ProgramRun) -> None:
        """The program wrote something, or is over: who waits for that goes on."""
        if run.progress is not None:
            progress, run.progress = run.progress, None
            progress.finished = True
            self._wake(progress)

    def progress_of(self, run: ProgramRun) -> Progress:
        run.progress = run.progress or Progress()
        return run.progress

    def wait_for_first(self, first: FirstOf) -> None:
        """Until one of the outputs is finished."""
        if not first.finished:
            self._growths.append(first)
            self.wait(first)

    def watch(self, output: Output) -> None:
        """Its text is read while it grows."""
        if not output.watched:
            output.watched = True
            if output.call is not None:
                self.backend.watch(output.call)

    def goes_on_elsewhere(self, run: ProgramRun) -> bool:
        """The program isn't over, and it isn't the one that asks."""
        inside = executing()
        return not run.finished and (inside is None or inside[1] is not run)

    def wait_for_other(self, run: ProgramRun) -> None:
        """Until the program is over, unless it is the one that asks."""
        if self.goes_on_elsewhere(run):
            self.wait(run)

    def let_go_on(self, run: ProgramRun) -> None:
        """For a step; inside a program, which can't tell what others do, until the run is over."""
        if executing() is None:
            self.advance()
        else:
            self.wait(run)

    def start_inside(
        self,
        outer: ProgramRun,
        program: Program,
        kwargs: Mapping[str, Any],
        sampling: Mapping[str, Any] | None = None,
    ) -> ProgramRun:
        """Runs a program until it first waits; then `outer`, which called it, goes on."""
        run = self._new(program, kwargs, self._tags_within(outer, program), sampling, parent=outer)
        if outer.program.is_async:
            self._resume(run)
            return run
        self._ready.appendleft(outer)
        outer._waits_for = None
        if program.is_async:
            self._ready.appendleft(run)
            self._hub.switch()
        else:
            self._resume(run)
        return run

    def run_inside(
        self,
        outer: ProgramRun,
        program: Program,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        limit: int | None,
    ) -> list[ProgramRun]:
        """Runs programs, at most `limit` at a time, from within `outer`, which waits for all of them."""
        runs: list[ProgramRun] = []
        for before in self._started_inside(outer, program, batch, sampling, limit, runs):
            self.wait(before)
        return runs

    async def run_inside_async(
        self,
        outer: ProgramRun,
        program: Program,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        limit: int | None,
    ) -> list[ProgramRun]:
        """The same from within an async program. When it is given up, so are they."""
        runs: list[ProgramRun] = []
        try:
            for before in self._started_inside(outer, program, batch, sampling, limit, runs):
                await self.until(before)
        except BaseException:
            await self.cancel_all(runs)
            raise
        return runs

    async def cancel_all(self, runs: Sequence[ProgramRun]) -> None:
        """Those that haven't finished. Returns once their cleanup is done."""
        for run in runs:
            self.cancel(run)

    def launch(self, run: ProgramRun) -> None:
        """Has a new run begin soon."""
        self._ready.append(run)

    # ---- programs

    def _started_inside(
        self,
        outer: ProgramRun,
        program: Program,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        limit: int | None,
        runs: list[ProgramRun],
    ) -> Iterator[ProgramRun]:
        """Fills `runs`. Yields each run that must be over before it goes on, in the end all."""
        limit = limit if outer.parallel else 1
        tags = self._tags_within(outer, program)
        together = Trunk((), n=min(limit or len(batch), len(batch)))
        for i, kwargs in enumerate(batch):
            if limit is not None and i >= limit:
                yield runs[i - limit]
            runs.append(self._new(program, kwargs, tags, sampling, parent=outer))
            runs[-1].kin = together if i < together.n else None
            self.launch(runs[-1])
        yield from runs

    def _tags_within(self, outer: ProgramRun, program: Program) -> Tags:
        return outer.tags._replace(due=None if outer.calls else outer.tags.due, agent=program.name)

    def _new(
        self,
        program: Program,
        kwargs: Mapping[str, Any],
        tags: Tags,
        sampling: Mapping[str, Any] | Sampling | None,
        parent: ProgramRun | None = None,
    ) -> ProgramRun:
        if parent is not None and parent.finished:
            raise RuntimeError(f"program {parent.name!r} is over: it starts no others")
        args = program.check(kwargs)
        parallel = program.parallel and (parent is None or parent.parallel)
        if not parallel and program.is_async:
            raise TypeError(
                f"program {program.name!r} is async, so its calls can't be waited for where they are written "
                "(parallel=False): await s.get(...) after each of them"
            )
        tags = tags if tags.program else tags._replace(program=f"{program.name}-{self._started}")
        over = parent.sampling if parent is not None else _DEFAULTS
        run = ProgramRun(
            name=tags.program,
            program=program,
            args=args,
            tags=tags,
            sampling=sampling if isinstance(sampling, Sampling) else over.over(overrides(sampling or {})),
            started_at=self.backend.clock.now(),
            parent=parent,
            parallel=parallel,
        )
        self._started += 1
        run.state = ProgramState(self, run)
        run.group = self.calls.gathering if parent is None else parent.group
        if not program.is_async:
            run._greenlet = greenlet(lambda: self._body(run))
        self._running.add(run)
        if parent is not None:
            parent.children.append(run)
        return run

    def _drain(self) -> None:
        """Resumes what can go on until nothing can. Runs in the hub."""
        while self._ready:
            run = self._ready.popleft()
            run._waits_for = None
            self._resume(run)

    def _resume(self, run: ProgramRun) -> None:
        """Until it waits for something, or is over."""
        if run.program.is_async:
            coroutines.resume(self, run)
        else:
            run._greenlet.parent = self._hub
            run._greenlet.switch()

    def rest(self, run: ProgramRun) -> None:
        """It goes on after the next step."""
        self._resting.append(run)

    def _body(self, run: ProgramRun) -> None:
        """What the program's greenlet does."""
        coroutines.enter(self, run)
        try:
            run.state.ret_value = run.program.fn(run.state, **run.args)
            run.state.text()
            rest: list[Awaited] = [*run.outputs, *run.children]
            for awaited in rest:  # nobody reads these: what went wrong there stays there
                self.wait(awaited)
            if not run.finished:
                run.status = "done"
        except (Exception, GreenletExit) as error:
            self.mark_failed(run, error)
        except BaseException as error:
            self.mark_failed(run, error)
            raise
        finally:
            self.end(run)

    def mark_cancelled(self, run: ProgramRun) -> None:
        if not run.finished:
            run.status = "cancelled"
            self._give_up(run)

    def mark_failed(self, run: ProgramRun, error: BaseException) -> None:
        if run.finished:  # cancelled: what its cleanup raises is of no interest
            return
        run.status, run.error = "failed", error
        run.where = _own_line(run, error)
        error.add_note(f"in program {run.name!r}, {run.where}")
        self._give_up(run)

    def _give_up(self, run: ProgramRun) -> None:
        """Its calls and the programs it runs end with it."""
        for child in run.children:
            self.cancel(child)
        for output in run.outputs:
            self.calls.give_up(output, f"its program was {run.status}")

    def end(self, run: ProgramRun) -> None:
        if run not in self._running:
            return
        run.finished_at = self.backend.clock.now()
        self._running.discard(run)
        if run.parent is None:
            self._finished.append(run)
        self._wake(run)
        self.wrote(run)

    def _wake(self, awaited: Awaited) -> None:
        for waiter in awaited.waiters:
            if not isinstance(waiter, ProgramRun):
                waiter.wake()
            elif waiter._waits_for is awaited and not waiter.finished:
                waiter._waits_for = None
                self._ready.append(waiter)
        awaited.waiters.clear()

    def _wake_readers(self) -> None:
        if self._growths:
            for growth in self._growths:
                if growth.finished:
                    self._wake(growth)
            self._growths = [growth for growth in self._growths if not growth.finished]


def _own_line(run: ProgramRun, error: BaseException) -> str:
    """path:line of the innermost frame in the program's own file, else of the call that failed."""
    if run.failed_at:
        return run.failed_at
    own = run.program.file
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    if frames:
        return f"{own}:{frames[-1].lineno}"
    return next((output.line for output in run.outputs if output.problem is error), own)
