"""`@function`: makes a program of a Python function whose first argument is `s`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, overload

from lang import async_runs
from lang.abstract import TraceError, at_line, is_abstract
from lang.backends.base import Backend, Tags
from lang.coroutines import executing
from lang.program_run import ProgramRun
from lang.progress import progress
from lang.runner import Runner
from lang.sampling import NAMES, Sampling, closest, overrides
from lang.state import ProgramState
from lang.tracing import current_tracer

if TYPE_CHECKING:
    from lang.graph.compiled import CompiledProgram
    from lang.graph.graph import Graph
    from lang.passes.base import Pass

RESERVED = frozenset(
    {"backend", "stream", "num_threads", "progress_bar", "generator_style", "num_api_spec_tokens", "parallel"}
)
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
        if inspect.isasyncgenfunction(fn):
            raise TypeError(f"{where}: a program can't be an async generator; write to s instead of yielding")
        self.fn = fn
        self.is_async = inspect.iscoroutinefunction(fn)
        self.name = fn.__name__
        self.file = fn.__code__.co_filename
        """Where it is written."""
        self.__doc__ = fn.__doc__
        self.bound: Mapping[str, Any] = dict(bound or {})
        self.num_api_spec_tokens = _spec_tokens(0 if num_api_spec_tokens is None else num_api_spec_tokens)
        self.parallel = True
        """Calls of one run go side by side; False: each is waited for where it is written."""
        self._set_signature(inspect.signature(fn))

    def _set_signature(self, signature: inspect.Signature) -> None:
        self._signature = signature
        self._names = tuple(signature.parameters)[1:]
        self._own = frozenset(self._names)
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        self._plain = all(signature.parameters[name].kind in by_name for name in self._names)

    def __repr__(self) -> str:
        return f"<program {self.name}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """With a state as its first argument: writes on in that state, and returns what the function returns.

        Without one, outside of a program: `run`. Inside of one: starts it and gives its state at once, so that programs
        called one after the other run side by side; what goes wrong in it is raised where its state is read.
        """
        tracer = current_tracer()
        if args and not is_abstract(args[0]) and isinstance(args[0], ProgramState):
            inside = executing()
            if self.is_async and inside is not None and not inside[1].program.is_async:
                raise RuntimeError(
                    f"program {self.name!r} is async: one that isn't can't await it; call it without a state and add "
                    f"what it wrote, as in s += {self.name}(...)"
                )
            return self.fn(args[0], *args[1:], **{**self.bound, **kwargs})
        if tracer is not None:
            if args and tracer.traces(args[0]):
                return tracer.go_on(self, args[0], self._named(args[1:], kwargs))
            return tracer.call(self, self._named(args, kwargs), {}, awaited=False)
        inside = executing()
        if inside is None:
            return self.run(*args, **kwargs)
        run = inside[0].start_inside(inside[1], self, self._named(args, kwargs))
        if not inside[1].parallel:
            inside[0].wait(run)
        return run.state

    def bind(self, **kwargs: Any) -> Program:
        """The program with some of its arguments given. Those given again later go before these."""
        self.check_names(kwargs)
        return Program(self.fn, {**self.bound, **kwargs}, self.num_api_spec_tokens)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Its arguments, without `s`."""
        return {name: self._signature.parameters[name] for name in self._names}

    def check_names(self, names: Iterable[str]) -> None:
        """Raises TypeError for one that isn't its own."""
        taken = any(one.kind is one.VAR_KEYWORD for one in self.parameters.values())
        if unknown := set() if taken else set(names) - self._own:
            name = min(unknown)
            known = ", ".join(self._names) or "none"
            raise TypeError(f"program {self.name!r} has no argument {name!r}{closest(name, self._own)} it has: {known}")

    def trace(self, **given: Any) -> Graph:
        """Its graph. Arguments that are given are part of it; the others stay open.

        Raises TraceError for what a graph can't hold: a Python `if` over what a model said, say.
        """
        from lang.graph.tracer import trace

        return trace(self, given)

    def compile(
        self, *, static: Sequence[str] = (), passes: Sequence[Pass] | None = None, **given: Any
    ) -> CompiledProgram:
        """The program as a graph that the executor runs, each call as soon as what it needs is there.

        given: arguments that become part of it. static: arguments that are part of it too, each value with a graph of
        its own, made when it is first met. passes: what is done to the graph first, in that order (None: nothing; see
        `lang.passes`). Raises as `trace` does.
        """
        from lang.graph.compiled import CompiledProgram

        return CompiledProgram(self.bind(**given) if given else self, static=static, passes=passes or ())

    def cache(self, backend: Backend | None = None) -> str:
        """Tells the backend to cache what every run begins with, ahead of the next calls. Returns it."""
        from lang.graph.prefix import constant_prefix

        backend = backend or default_backend()
        prompt = constant_prefix(self)
        if prompt.pieces:
            backend.commit(prompt, Tags(program=self.name))
        return prompt.text(backend.style)

    def check(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """All arguments, bound ones too. Raises TypeError when the program can't be called with them."""
        arguments = {**self.bound, **kwargs} if self.bound else kwargs
        if self._plain and arguments.keys() == self._own:
            return arguments
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
        parallel: bool = True,
        **kwargs: Any,
    ) -> ProgramState:
        """Runs it to its end. Keywords that aren't the program's own are defaults for its calls (temperature=0, ...).

        Raises what the program raises. stream: returns at once; the program goes on while its state is read, with
        `text_iter`, say, and what goes wrong is raised there. num_api_spec_tokens: in place of the program's own.
        parallel=False: an ablation; each call, of programs that it runs too, is waited for where it is written. Raises
        TypeError for that of an async program.
        """
        own, sampling = self._split(self._named(args, kwargs))
        tracer = current_tracer()
        if tracer is not None:
            _refuse_sequential(self, parallel)
            tracer.check_backend(self, backend)
            return tracer.call(self, own, sampling, awaited=not stream)  # type: ignore[return-value]
        program = self._as_told(num_api_spec_tokens, parallel)
        if stream:
            return program._start(own, sampling, backend).state
        (run,) = program._runs([own], sampling, backend, limit=None, progress_bar=False)
        if run.error is not None:
            raise run.error
        return run.state

    async def run_async(
        self,
        *args: Any,
        backend: Backend | None = None,
        stream: bool = False,
        num_api_spec_tokens: int | None = None,
        **kwargs: Any,
    ) -> ProgramState:
        """`run` in asyncio code: other tasks go on meanwhile. Cancelling it cancels the program.

        All programs that run so on one event loop and one backend share its steps, which are made on the loop's thread.
        """
        own, sampling = self._split(self._named(args, kwargs))
        tracer = current_tracer()
        if tracer is not None:
            tracer.check_backend(self, backend)
            return tracer.call(self, own, sampling, awaited=not stream)  # type: ignore[return-value]
        chosen, program = _backend_here(backend), self._as_told(num_api_spec_tokens)
        if stream:
            return async_runs.started(program, own, sampling, chosen).state
        return (await async_runs.one(program, own, sampling, chosen)).state

    @overload
    def run_batch_async(
        self,
        batch: Sequence[Item],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: Literal[False] = False,
        num_api_spec_tokens: int | None = None,
        **sampling: Any,
    ) -> Awaitable[list[ProgramState]]: ...

    @overload
    def run_batch_async(
        self,
        batch: Sequence[Item],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: Literal[True],
        num_api_spec_tokens: int | None = None,
        **sampling: Any,
    ) -> AsyncIterator[ProgramState]: ...

    def run_batch_async(
        self,
        batch: Sequence[Item],
        *,
        backend: Backend | None = None,
        num_threads: int | str = "auto",
        progress_bar: bool = False,
        generator_style: bool = False,
        num_api_spec_tokens: int | None = None,
        **sampling: Any,
    ) -> Awaitable[list[ProgramState]] | AsyncIterator[ProgramState]:
        """`run_batch` in asyncio code: to await, or with `generator_style` for `async for`.

        Leaving it early cancels the rest.
        """
        tracer = current_tracer()
        if tracer is not None:
            raise tracer.refused(
                f"{self.name}.run_batch_async()", "call the program for each item, and read the states"
            )
        items, defaults, limit = self._batch(batch, num_threads, sampling)
        runs = async_runs.each(
            self._as_told(num_api_spec_tokens), items, defaults, _backend_here(backend), limit, progress_bar
        )
        states = (run.state async for run in runs)
        return states if generator_style else _all_of(states)

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
        parallel: bool = True,
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
        parallel: bool = True,
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
        parallel: bool = True,
        **sampling: Any,
    ) -> list[ProgramState] | Iterator[ProgramState]:
        """Runs it once for each of `batch` (dicts, or tuples in the order of its arguments), together.

        States come in the order of `batch`; with `generator_style` each as soon as it and those before it are done. A
        run that fails doesn't stop the others: its `state.error()` says why, and reading its variables raises.
        `num_threads`: programs at a time ("auto": all, the backend queues). There are no threads; the name is SGLang's.
        What all first calls begin with is cached before they are sent. num_api_spec_tokens: in place of the program's.
        parallel=False: as in `run`; programs of the batch still go side by side.
        """
        items, defaults, limit = self._batch(batch, num_threads, sampling)
        tracer = current_tracer()
        if tracer is not None:
            _refuse_sequential(self, parallel)
            tracer.check_backend(self, backend)
            traced = [tracer.call(self, item, defaults, awaited=False) for item in items]
            return iter(traced) if generator_style else traced  # type: ignore[return-value]
        program = self._as_told(num_api_spec_tokens, parallel)
        states = (run.state for run in program._runs(items, defaults, backend, limit, progress_bar))
        return states if generator_style else list(states)

    def _batch(
        self, batch: Sequence[Item], num_threads: int | str, sampling: Mapping[str, Any]
    ) -> tuple[list[Mapping[str, Any]], Mapping[str, Any], int | None]:
        """Each item's arguments, defaults for the calls, how many at a time. Raises TypeError or ValueError."""
        own_in_sampling, defaults = self._split(sampling)
        if own_in_sampling:
            raise TypeError(f"program {self.name!r}: {min(own_in_sampling)!r} is its own argument; put it in each item")
        if num_threads != "auto" and (not isinstance(num_threads, int) or num_threads < 1):
            raise ValueError(f"num_threads={num_threads!r} is not allowed: it must be 'auto' or 1 or more")
        items = [self._item(i, item) for i, item in enumerate(batch)]
        return items, defaults, num_threads if isinstance(num_threads, int) else None

    def _as_told(self, num_api_spec_tokens: int | None, parallel: bool = True) -> Program:
        """With what a run sets in place of the program's own."""
        if num_api_spec_tokens is None and parallel:
            return self
        program = copy(self)
        program.parallel = parallel
        if num_api_spec_tokens is not None:
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
        if inside is not None and inside[1].program.is_async:
            raise RuntimeError(
                f"an async program must not block: await {self.name}.run_async(...) or run_batch_async(...) instead"
            )
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
        defaults = Sampling().over(overrides(sampling))  # once for all
        runs: list[ProgramRun] = []
        given = 0

        def start() -> None:
            while len(runs) < len(batch) and (limit is None or runner.active < limit):
                runs.append(runner.start(self, batch[len(runs)], name=f"{self.name}-{len(runs)}", sampling=defaults))

        with progress(self.name, len(batch) if progress_bar else 0) as advance:
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


def _refuse_sequential(program: Program, parallel: bool) -> None:
    """Raises TraceError."""
    if not parallel:
        raise TraceError(
            f"{at_line()}: {program.name}.run(parallel=False) has no place in a graph: run the whole compiled program "
            "with parallel=False"
        )


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


async def _all_of(states: AsyncIterator[ProgramState]) -> list[ProgramState]:
    return [state async for state in states]


_default: list[Backend] = []


def set_default_backend(backend: Backend | None) -> None:
    """What `run` and `run_batch` use when no backend is given; None forgets it."""
    _default[:] = [] if backend is None else [backend]


def flush_cache(backend: Backend | None = None) -> None:
    """Forgets the cached prefixes of the backend, or of the default one."""
    (backend or default_backend()).flush_cache()


def _backend_here(backend: Backend | None) -> Backend:
    """The one given, else that of the program that asks, else the default."""
    inside = executing()
    return backend or (inside[0].backend if inside is not None else default_backend())


def default_backend() -> Backend:
    """Raises RuntimeError when none was set."""
    if not _default:
        raise RuntimeError("no backend: pass backend=..., or call lang.set_default_backend(...) first")
    return _default[0]
