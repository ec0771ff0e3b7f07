"""`@function`: makes a program of a Python function whose first argument is `s`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, Literal, overload

from lang.backends.base import Backend
from lang.program_run import ProgramRun
from lang.runner import Runner, executing
from lang.sampling import NAMES, closest
from lang.state import ProgramState

RESERVED = frozenset({"backend", "stream", "num_threads", "progress_bar", "generator_style", "num_api_spec_tokens"})
Item = Mapping[str, Any] | tuple[Any, ...] | list[Any]


class Program:
    """A function over a `ProgramState`, ready to run."""

    def __init__(
        self, fn: Callable[..., Any], bound: Mapping[str, Any] | None = None, num_api_spec_tokens: int | None = None
    ) -> None:
        """bound: arguments that are given already. num_api_spec_tokens: see `function`."""
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
        self._names = tuple(parameter.name for parameter in parameters[1:])
        self._own = frozenset(self._names)
        self.bound: Mapping[str, Any] = dict(bound or {})
        self.num_api_spec_tokens = _spec_tokens(0 if num_api_spec_tokens is None else num_api_spec_tokens)

    def __repr__(self) -> str:
        return f"<program {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With a state as its first argument: writes on in that state, and returns what the function returns.

        Without one, outside of a program: `run`. Inside of one: starts it and gives its state at once, so that programs
        called one after the other run side by side; what goes wrong in it is raised where its state is read.
        """
        if args and isinstance(args[0], ProgramState):
            return self.fn(args[0], *args[1:], **{**self.bound, **kwargs})
        inside = executing()
        if inside is None:
            return self.run(*args, **kwargs)
        return inside[0].start_inside(inside[1], self, self._named(args, kwargs)).state

    def bind(self, **kwargs: Any) -> Program:
        """The program with some of its arguments given. Those given again later go before these."""
        if unknown := kwargs.keys() - self._own:
            name = min(unknown)
            known = ", ".join(self._names) or "none"
            raise TypeError(f"program {self.name!r} has no argument {name!r}{closest(name, self._own)} it has: {known}")
        return Program(self.fn, {**self.bound, **kwargs}, self.num_api_spec_tokens)

    def check(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """All arguments, bound ones too. Raises TypeError when the program can't be called with them."""
        arguments = {**self.bound, **kwargs} if self.bound else kwargs
        try:
            self._signature.bind(None, **arguments)
        except TypeError as error:
            takes = ", ".join(sorted(self._own)) or "none"
            raise TypeError(f"program {self.name!r}: {error}; its arguments: {takes}") from None
        return arguments

    def run(
        self,
        *args: Any,
        backend: Backend | None = None,
        stream: bool = False,
        num_api_spec_tokens: int | None = None,
        **kwargs: Any,
    ) -> ProgramState:
        """Runs it to its end. Keywords that aren't the program's own are defaults for its calls (temperature=0, ...).

        Raises what the program raises. stream: returns at once; the program goes on while its state is read, with
        `text_iter`, say, and what goes wrong is raised there. num_api_spec_tokens: in place of the program's own.
        """
        own, sampling = self._split(self._named(args, kwargs))
        program = self._speculating(num_api_spec_tokens)
        if stream:
            return program._start(own, sampling, backend).state
        (run,) = program._runs([own], sampling, backend, limit=None, progress_bar=False)
        if run.error is not None:
            raise run.error
        return run.state

    @overload
    def run_batch(
        self,
        batch: Sequence[Item],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: Literal[False] = False,
        num_api_spec_tokens: int | None = None,
        **sampling: Any,
    ) -> list[ProgramState]: ...

    @overload
    def run_batch(
        self,
        batch: Sequence[Item],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: Literal[True],
        num_api_spec_tokens: int | None = None,
        **sampling: Any,
    ) -> Iterator[ProgramState]: ...

    def run_batch(
        self,
        batch: Sequence[Item],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        num_api_spec_tokens: int | None = None,
        **sampling: Any,
    ) -> list[ProgramState] | Iterator[ProgramState]:
        """Runs it once for each of `batch` (dicts, or tuples in the order of its arguments), together.

        States come in the order of `batch`; with `generator_style` each as soon as it and those before it are done. A
        run that fails doesn't stop the others: its `state.error()` says why, and reading its variables raises.
        `num_threads`: programs at a time ("auto": all, the backend queues). There are no threads; the name is SGLang's.
        What all first calls begin with is cached before they are sent. num_api_spec_tokens: in place of the program's.
        """
        own_in_sampling, defaults = self._split(sampling)
        if own_in_sampling:
            raise TypeError(f"program {self.name!r}: {min(own_in_sampling)!r} is its own argument; put it in each item")
        if num_threads != "auto" and (not isinstance(num_threads, int) or num_threads < 1):
            raise ValueError(f"num_threads={num_threads!r} is not allowed: it must be 'auto' or 1 or more")
        items = [self._item(i, item) for i, item in enumerate(batch)]
        limit = num_threads if isinstance(num_threads, int) else None
        program = self._speculating(num_api_spec_tokens)
        states = (run.state for run in program._runs(items, defaults, backend, limit, progress_bar))
        return states if generator_style else list(states)

    def _speculating(self, num_api_spec_tokens: int | None) -> Program:
        if num_api_spec_tokens is None:
            return self
        program = copy(self)
        program.num_api_spec_tokens = _spec_tokens(num_api_spec_tokens)
        return program

    def _item(self, i: int, item: Item) -> Mapping[str, Any]:
        if not isinstance(item, Mapping | tuple | list):
            raise TypeError(
                f"run_batch item {i} is {type(item).__name__}: it must be a dict or a tuple of the program's arguments"
            )
        try:
            named = item if isinstance(item, Mapping) else self._named(tuple(item), {})
            self.check(named)
        except TypeError as error:
            raise TypeError(f"run_batch item {i}: {error}") from None
        return named

    def _named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if len(args) > len(self._names):
            raise TypeError(f"program {self.name!r} takes {len(self._names)} arguments, {len(args)} were given")
        named = dict(zip(self._names, args))
        if twice := named.keys() & kwargs.keys():
            raise TypeError(f"program {self.name!r} got its argument {min(twice)!r} twice")
        return {**named, **kwargs}

    def _split(self, named: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The program's own arguments, and the sampling defaults. A name that is both is the program's."""
        own, sampling = {}, {}
        for name, value in named.items():
            if name not in self._own and name in NAMES | {"max_new_tokens"}:
                sampling["max_tokens" if name == "max_new_tokens" else name] = value
            else:
                own[name] = value
        return own, sampling

    def _runs(
        self,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        backend: Backend | None,
        limit: int | None,
        progress_bar: bool,
    ) -> Iterator[ProgramRun]:
        """In the order of `batch`; within a program it waits for all of them."""
        inside = executing()
        if inside is not None and backend in (None, inside[0].backend):
            return iter(inside[0].run_inside(inside[1], self, batch, sampling, limit))
        return self._all(batch, sampling, backend, limit, progress_bar)

    def _all(
        self,
        batch: Sequence[Mapping[str, Any]],
        sampling: Mapping[str, Any],
        backend: Backend | None,
        limit: int | None,
        progress_bar: bool,
    ) -> Iterator[ProgramRun]:
        """Each run as soon as it and those before it are done."""
        runner = Runner(backend or default_backend())
        runs: list[ProgramRun] = []
        given = 0

        def start() -> None:
            while len(runs) < len(batch) and (limit is None or runner.active < limit):
                runs.append(runner.start(self, batch[len(runs)], name=f"{self.name}-{len(runs)}", sampling=sampling))

        with _progress(self.name, len(batch) if progress_bar else 0) as advance:
            with runner.together():
                start()
            while given < len(batch):
                advance(len(runner.step()))
                start()
                while given < len(runs) and runs[given].finished:
                    yield runs[given]
                    given += 1

    def _start(self, kwargs: Mapping[str, Any], sampling: Mapping[str, Any], backend: Backend | None) -> ProgramRun:
        inside = executing()
        if inside is not None and backend in (None, inside[0].backend):
            return inside[0].start_inside(inside[1], self, kwargs, sampling)
        return Runner(backend or default_backend()).start(self, kwargs, sampling=sampling)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar to advance; none for a total of 0."""
    if not total:
        yield lambda _: None
        return
    from rich.progress import Progress

    with Progress() as progress:
        task = progress.add_task(name, total=total)
        yield lambda n: progress.advance(task, n)


def _spec_tokens(given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool) or given < 0:
        raise ValueError(
            f"num_api_spec_tokens={given!r} is not allowed: it must be the tokens that a call is asked for, 1 or more, "
            "or 0 for no speculation"
        )
    return given


@overload
def function(fn: Callable[..., Any]) -> Program: ...


@overload
def function(*, num_api_spec_tokens: int | None = None) -> Callable[[Callable[..., Any]], Program]: ...


def function(
    fn: Callable[..., Any] | None = None, *, num_api_spec_tokens: int | None = None
) -> Program | Callable[[Callable[..., Any]], Program]:
    """Makes a program: `@function` over `def name(s, ...)`.

    `@function(num_api_spec_tokens=64)`: over a network, a gen with a stop is asked for 64 tokens (its max_tokens if
    more) without it, and gens behind it are served from what comes after the stop where the program goes on as the
    model did (API speculative execution: arXiv 2312.07104, section 3). Raises ValueError for what is no such number.
    """
    if fn is None:
        return lambda fn: Program(fn, num_api_spec_tokens=num_api_spec_tokens)
    return Program(fn, num_api_spec_tokens=num_api_spec_tokens)


_default: list[Backend] = []


def set_default_backend(backend: Backend | None) -> None:
    """What `run` and `run_batch` use when no backend is given; None forgets it."""
    _default[:] = [] if backend is None else [backend]


def flush_cache(backend: Backend | None = None) -> None:
    """Forgets the cached prefixes of the backend, or of the default one."""
    (backend or default_backend()).flush_cache()


def default_backend() -> Backend:
    """Raises RuntimeError when none was set."""
    if not _default:
        raise RuntimeError("no backend: pass backend=..., or call lang.set_default_backend(...) first")
    return _default[0]
