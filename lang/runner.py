"""Runs many programs on one thread: each is a greenlet that gives way when it needs an answer that isn't there yet.

Nothing here depends on time or on a thread's whims, so the order in which calls reach the backend can be repeated.
"""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from greenlet import GreenletExit, getcurrent, greenlet

from lang.backends.base import Backend, Call, Tags
from lang.primitives import Gen, Select
from lang.sampling import Sampling, overrides
from lang.state import ProgramState

if TYPE_CHECKING:
    from lang.function import Program


@dataclass(eq=False, kw_only=True)
class ProgramRun:
    """One run of one program."""

    name: str
    program: Program
    args: Mapping[str, Any]
    tags: Tags
    sampling: Sampling
    """What its calls take for everything they don't set."""
    started_at: float
    """Seconds, as all times here."""
    finished_at: float | None = None
    status: Literal["running", "done", "failed", "cancelled"] = "running"
    state: ProgramState = field(init=False)
    error: BaseException | None = None
    where: str = ""
    """The program's own line that raised `error`: path:line."""
    calls: list[Call] = field(default_factory=list)
    """In the order sent, those of the programs it ran included."""
    parent: ProgramRun | None = None
    _waits_for: Call | ProgramRun | None = None
    _greenlet: Any = None

    @property
    def due(self) -> float:
        """When it should have started; when it did, if nobody said."""
        return self.started_at if self.tags.due is None else self.tags.due

    @property
    def client(self) -> str:
        return self.tags.client

    @property
    def finished(self) -> bool:
        return self.status != "running"


class Runner:
    """Starts programs on a backend, steps it and wakes the programs whose answers came. One thread only."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self._hub = getcurrent()
        self._ready: deque[ProgramRun] = deque()
        self._open: dict[Call, ProgramRun] = {}
        self._running: set[ProgramRun] = set()
        self._finished: list[ProgramRun] = []
        self._started = 0

    @property
    def active(self) -> int:
        """Programs started and not finished, those started by programs included."""
        return len(self._running)

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
        sampling: Mapping[str, Any] | None = None,
    ) -> ProgramRun:
        """Runs the program until it first waits. `due`: when it should have started, seconds (default: now).

        `sampling` holds defaults for its calls. Raises TypeError for arguments that the program doesn't take;
        what goes wrong inside the program is in `ProgramRun.error`.
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
        self._hub = getcurrent()
        if self._open:
            for call in self.backend.step():
                owner = self._open.pop(call, None)
                if owner is not None and owner._waits_for is call:
                    self._ready.append(owner)
            self._drain()
        elif self._running:
            names = ", ".join(sorted(run.name for run in self._running)[:5])
            raise RuntimeError(f"programs wait, but none of their calls is under way: {names}")
        finished, self._finished = self._finished, []
        return finished

    def cancel(self, run: ProgramRun) -> None:
        """Ends the program where it waits (its `finally` blocks run) and aborts its calls.

        `step` returns it as finished, with status "cancelled". Finished runs stay as they are.
        """
        if run.finished:
            return
        if getcurrent() is run._greenlet:
            raise RuntimeError(f"program {run.name!r} can't cancel itself; return or raise instead")
        for child in [other for other in self._running if other.parent is run]:
            self.cancel(child)
        run.status = "cancelled"
        self._abort_calls(run)
        if run in self._ready:
            self._ready.remove(run)
        greenlet_ = run._greenlet
        if greenlet_:
            greenlet_.parent = getcurrent()
            greenlet_.throw(GreenletExit)
        self._end(run)

    def run_inside(
        self,
        outer: ProgramRun,
        program: Program,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        limit: int | None,
    ) -> list[ProgramRun]:
        """Runs programs, at most `limit` at a time, from within `outer`, which waits for all of them."""
        tags = outer.tags._replace(due=None) if outer.calls else outer.tags
        runs: list[ProgramRun] = []
        for i, kwargs in enumerate(batch):
            if limit is not None and i >= limit:
                self._wait(outer, runs[i - limit])
            runs.append(self._new(program, kwargs, tags, sampling, parent=outer))
            self._ready.append(runs[-1])
        for run in runs:
            self._wait(outer, run)
        return runs

    def _new(
        self,
        program: Program,
        kwargs: Mapping[str, Any],
        tags: Tags,
        sampling: Mapping[str, Any] | None,
        parent: ProgramRun | None = None,
    ) -> ProgramRun:
        program.check(kwargs)
        tags = tags if tags.program else tags._replace(program=f"{program.name}-{self._started}")
        run = ProgramRun(
            name=tags.program,
            program=program,
            args=kwargs,
            tags=tags,
            sampling=Sampling(**overrides(sampling or {})),
            started_at=self.backend.clock.now(),
            parent=parent,
        )
        self._started += 1
        run.state = ProgramState(
            lambda expr, prompt: self._submit(run, expr, prompt), lambda call: self._wait(run, call)
        )
        run._greenlet = _RunGreenlet(lambda: self._body(run))
        run._greenlet.run_of = (self, run)
        self._running.add(run)
        return run

    def _drain(self) -> None:
        """Resumes what can go on until nothing can. Runs in the hub."""
        while self._ready:
            run = self._ready.popleft()
            run._waits_for = None
            run._greenlet.parent = self._hub
            run._greenlet.switch()

    def _body(self, run: ProgramRun) -> None:
        """What the program's greenlet does."""
        try:
            run.state.ret_value = run.program.fn(run.state, **run.args)
            run.state.text()
            if not run.finished:
                run.status = "done"
        except (Exception, GreenletExit) as error:
            self._fail(run, error)
        except BaseException as error:
            self._fail(run, error)
            raise
        finally:
            self._end(run)

    def _fail(self, run: ProgramRun, error: BaseException) -> None:
        if run.finished:  # cancelled: what its cleanup raises is of no interest
            return
        run.status, run.error, run.state._error = "failed", error, error
        run.where = _own_line(run, error)
        error.add_note(f"in program {run.name!r}, {run.where}")
        self._abort_calls(run)

    def _abort_calls(self, run: ProgramRun) -> None:
        for call in [call for call, owner in self._open.items() if owner is run]:
            self.backend.abort(call)
            del self._open[call]

    def _end(self, run: ProgramRun) -> None:
        if run not in self._running:
            return
        run.finished_at = self.backend.clock.now()
        self._running.discard(run)
        if run.parent is None:
            self._finished.append(run)
        elif run.parent._waits_for is run:
            self._ready.append(run.parent)

    def _submit(self, run: ProgramRun, expr: Gen | Select, prompt: str) -> Call:
        if run.finished:
            raise RuntimeError(f"program {run.name!r} is over: its state takes no more calls")
        tags = run.tags if not run.calls else run.tags._replace(due=None)
        if isinstance(expr, Gen):
            sampling = run.sampling.over(expr.sampling)
            call = self.backend.generate(expr.name, prompt, sampling, tags)
        else:
            call = self.backend.score(expr.name, prompt, expr.choices, expr.method, tags)
        self._open[call] = run
        owner: ProgramRun | None = run
        while owner is not None:
            owner.calls.append(call)
            owner = owner.parent
        return call

    def _wait(self, run: ProgramRun, on: Call | ProgramRun) -> None:
        """Gives way until `on` is finished. Runs in the program."""
        while not on.finished:
            if run.finished:
                raise RuntimeError(f"program {run.name!r} was {run.status} before this call finished")
            run._waits_for = on
            self._hub.switch()


class _RunGreenlet(greenlet):
    run_of: tuple[Runner, ProgramRun]


def executing() -> tuple[Runner, ProgramRun] | None:
    """The program that is executing now, if one is, and its runner."""
    here = getcurrent()
    return here.run_of if isinstance(here, _RunGreenlet) else None


def _own_line(run: ProgramRun, error: BaseException) -> str:
    """path:line of the innermost frame in the program's own file."""
    own = run.program.fn.__code__.co_filename
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    return f"{own}:{frames[-1].lineno}" if frames else own
