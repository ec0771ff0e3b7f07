"""`@function`: makes a program of a Python function whose first argument is `s`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.progress import Progress

from lang.backends.base import Backend
from lang.runner import ProgramRun, Runner, executing
from lang.sampling import NAMES
from lang.state import ProgramState

RESERVED = frozenset({"backend", "num_threads", "progress_bar"})


class Program:
    """A function over a `ProgramState`, ready to run."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(fn).parameters.values())
        where = f"program {fn.__name__!r}"
        if not parameters or parameters[0].name != "s":
            raise TypeError(
                f"{where}: its first argument must be named 's' (its state), as in def {fn.__name__}(s, ...)"
            )
        if taken := RESERVED & {parameter.name for parameter in parameters}:
            raise TypeError(f"{where}: run() needs the name {min(taken)!r} for itself; rename the argument")
        self.fn = fn
        self.name = fn.__name__
        self.__doc__ = fn.__doc__
        self._signature = inspect.signature(fn)
        self._own = frozenset(parameter.name for parameter in parameters[1:])

    def __repr__(self) -> str:
        return f"<program {self.name}>"

    def check(self, kwargs: Mapping[str, Any]) -> None:
        """Raises TypeError when the program can't be called with these arguments."""
        try:
            self._signature.bind(None, **kwargs)
        except TypeError as error:
            takes = ", ".join(sorted(self._own)) or "none"
            raise TypeError(f"program {self.name!r}: {error}; its arguments: {takes}") from None

    def run(self, *args: Any, backend: Backend | None = None, **kwargs: Any) -> ProgramState:
        """Runs it to its end. Keywords that aren't the program's own are defaults for its calls (temperature=0, ...).

        Raises what the program raises.
        """
        named = {**dict(zip([*self._signature.parameters][1:], args)), **kwargs}
        if len(args) > len(self._own):
            raise TypeError(f"program {self.name!r} takes {len(self._own)} arguments, {len(args)} were given")
        own, sampling = self._split(named)
        (run,) = self._run_all([own], sampling, backend, limit=None, progress_bar=False)
        if run.error is not None:
            raise run.error
        return run.state

    def run_batch(
        self,
        batch: Sequence[Mapping[str, Any]],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        **sampling: Any,
    ) -> list[ProgramState]:
        """Runs it once for each of `batch`, together; states come in the order of `batch`.

        A run that fails doesn't stop the others: its `state.error()` says why, and reading its variables raises.
        `num_threads`: programs at a time ("auto": all, the backend queues). There are no threads; the name is SGLang's.
        """
        own_in_sampling, defaults = self._split(sampling)
        if own_in_sampling:
            raise TypeError(f"program {self.name!r}: {min(own_in_sampling)!r} is its own argument; put it in each item")
        if num_threads != "auto" and (not isinstance(num_threads, int) or num_threads < 1):
            raise ValueError(f"num_threads={num_threads!r} is not allowed: it must be 'auto' or 1 or more")
        for i, item in enumerate(batch):
            if not isinstance(item, Mapping):
                raise TypeError(
                    f"run_batch item {i} is {type(item).__name__}: it must be a dict of the program's arguments"
                )
            try:
                self.check(item)
            except TypeError as error:
                raise TypeError(f"run_batch item {i}: {error}") from None
        limit = num_threads if isinstance(num_threads, int) else None
        return [run.state for run in self._run_all(batch, defaults, backend, limit, progress_bar)]

    def _split(self, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The program's own arguments, and the sampling defaults. A name that is both is the program's."""
        own, sampling = {}, {}
        for name, value in named.items():
            if name not in self._own and name in NAMES | {"max_new_tokens"}:
                sampling["max_tokens" if name == "max_new_tokens" else name] = value
            else:
                own[name] = value
        return own, sampling

    def _run_all(
        self,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        backend: Backend | None,
        limit: int | None,
        progress_bar: bool,
    ) -> list[ProgramRun]:
        inside = executing()
        if inside is not None and backend in (None, inside[0].backend):
            return inside[0].run_inside(inside[1], self, batch, sampling, limit)
        runner = Runner(backend or default_backend())
        runs: list[ProgramRun] = []
        with Progress(disable=not progress_bar) as progress:
            task = progress.add_task(self.name, total=len(batch))
            while len(runs) < len(batch) or runner.active:
                while len(runs) < len(batch) and (limit is None or runner.active < limit):
                    runs.append(
                        runner.start(self, batch[len(runs)], name=f"{self.name}-{len(runs)}", sampling=sampling)
                    )
                progress.advance(task, len(runner.step()))
        return runs


def function(fn: Callable[..., Any]) -> Program:
    """Makes a program: `@function` over `def name(s, ...)`."""
    return Program(fn)


_default: list[Backend] = []


def set_default_backend(backend: Backend | None) -> None:
    """What `run` and `run_batch` use when no backend is given; None forgets it."""
    _default[:] = [] if backend is None else [backend]


def default_backend() -> Backend:
    """Raises RuntimeError when none was set."""
    if not _default:
        raise RuntimeError("no backend: pass backend=..., or call lang.set_default_backend(...) first")
    return _default[0]
