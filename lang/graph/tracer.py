"""Runs a program with values that stand for what isn't known, and notes what it does."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lang.abstract import TraceError, at_line, is_abstract
from lang.graph.expressions import Argument, Expression, Result, Round, results_in
from lang.graph.functions import BUILTIN, path_of
from lang.graph.graph import Graph
from lang.graph.held import held_by, same
from lang.graph.known import Names
from lang.graph.ops import Apply, Cond, End, Loop, Operation, Start, region_of
from lang.graph.source import traceable
from lang.graph.traced_state import TracedState
from lang.graph.values import Value, expression_of
from lang.sampling import overrides
from lang.tracing import tracing

if TYPE_CHECKING:
    from lang.function import Program


class Tracer:
    """One trace. Operations get their numbers in the order in which the program does them."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[..., Any]] = {}
        self._ops: list[Operation] = []
        self._n_ops = 0
        self._n_streams = 0
        self._n_movables = 0
        self._visible: set[int] = set()
        """Operations whose results can be used where the trace is now."""
        self._states: list[TracedState] = []
        """Those that can be used here."""
        self._sampling: list[Mapping[str, Any]] = [{}]
        """Defaults that called programs were given, innermost last."""

    @property
    def ops(self) -> tuple[Operation, ...]:
        return tuple(self._ops)

    def _number(self) -> int:
        self._n_ops += 1
        return self._n_ops - 1

    def add(self, kind: type[Operation], number: int | None = None, **fields: Any) -> int:
        """Notes an operation; its number. Raises TraceError for a value from a branch that may not have happened."""
        op = kind(id=self._number() if number is None else number, line=at_line(), **fields)
        for expression in op.expressions:
            self._check(expression)
        self._ops.append(op)
        self._visible.add(op.id)
        return op.id

    def new_state(self, like: TracedState | None = None) -> TracedState:
        state = TracedState(self, self._n_streams, like)
        self._n_streams += 1
        self._states.append(state)
        return state

    def new_movable(self) -> int:
        self._n_movables += 1
        return self._n_movables - 1

    @property
    def sampling(self) -> Mapping[str, Any]:
        return self._sampling[-1]

    def check_here(self, state: TracedState) -> None:
        """Raises TraceError for a state that was made in a branch or a loop that is over."""
        if not any(known is state for known in self._states):
            raise TraceError(
                f"{at_line()}: this state was made inside a cond or loop that has ended: perhaps it isn't there"
            )

    def _check(self, expression: Expression) -> None:
        for number in results_in(expression):
            if number not in self._visible:
                raise TraceError(
                    f"{at_line()}: a value from inside a cond or loop is used outside of it, where it may not be: "
                    "put it into s[...] inside, and read it from there"
                )

    # ---- computations

    def apply(
        self, function: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, pure: bool, is_text: bool = False
    ) -> Value:
        number = self.add(
            Apply,
            function=function,
            args=tuple(map(expression_of, args)),
            kwargs={name: expression_of(value) for name, value in kwargs.items()},
            pure=pure,
        )
        name = function.rpartition(":")[2].removeprefix("operator.")
        return Value(self, Result(op=number), f"the value of {name}(...)", is_text=is_text)

    def apply_function(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
        name = path_of(function)
        if name not in BUILTIN:
            if self.functions.setdefault(name, function) is not function and name.endswith("<lambda>"):
                name = f"{name}@{len(self.functions)}"
            self.functions[name] = function
        pure = name in BUILTIN or getattr(function, "__lang_pure__", False)
        gives_text = name in ("builtins.str",)
        return self.apply(name, args, kwargs, pure=pure, is_text=gives_text)

    # ---- programs

    def call(
        self, program: Program, arguments: Mapping[str, Any], sampling: Mapping[str, Any], *, awaited: bool
    ) -> TracedState:
        """A program that this one calls: its operations, on a stream of its own."""
        arguments = program.check(arguments)
        child = self.new_state()
        self.add(Start, program=program.name, child=child.stream)
        self._sampling.append({**self.sampling, **overrides(sampling)})
        try:
            child.ret_value = finished(traceable(program.fn)(child, **arguments))
        finally:
            self._sampling.pop()
        self.add(End, child=child.stream, awaited=awaited)
        child.check_ended()
        return child

    def check_backend(self, program: Program, backend: object) -> None:
        """Raises TraceError for a program that is to run on another backend."""
        if backend is not None:
            raise self.refused(f"{program.name}.run(backend=...)", "all of a graph runs on one backend: leave it out")

    @staticmethod
    def refused(what: str, instead: str) -> TraceError:
        return TraceError(f"{at_line()}: {what} has no place in a graph: {instead}")

    def traces(self, state: object) -> bool:
        """It is a state of this trace."""
        return type(state) is TracedState and state.tracer is self

    def go_on(self, program: Program, state: TracedState, arguments: Mapping[str, Any]) -> Any:
        """A program that is called with a state writes on in it."""
        return finished(traceable(program.fn)(state, **program.check(arguments)))

    # ---- branches and loops

    def cond(
        self,
        state: TracedState,
        test: Any,
        then: Callable[[TracedState], None],
        otherwise: Callable[[TracedState], None] | None,
    ) -> None:
        if not is_abstract(test):
            chosen = then if test else otherwise
            if chosen is not None:
                traceable(chosen)(state)
            return
        self.check_here(state)
        number, before = self._number(), self._names()
        regions, after = [], []
        for branch in (then, otherwise):
            with self._region([branch]) as region:
                if branch is not None:
                    finished(traceable(branch)(state))
            regions.append(region_of(region))
            after.append(self._names())
            self._restore(before)
        for one, names in before.items():
            one.names = names.after_either(*(found[one] for found in after))
        self.add(Cond, number, stream=state.stream, test=expression_of(test), then=regions[0], otherwise=regions[1])

    def loop(
        self,
        state: TracedState,
        body: Callable[[TracedState, Any], None],
        limit: int,
        until: Callable[[TracedState], Any] | None,
    ) -> None:
        """The body is traced twice: first to see which variables it sets, which nobody knows at a round's start."""
        self.check_here(state)
        number = self._number()
        before, counts = self._names(), (self._n_ops, self._n_streams, self._n_movables)
        for one in before:
            one.names.written.clear()
        self._round(state, body, until, number)
        after = self._names()
        for one, names in before.items():
            one.names = names.varying(after[one])
        self._n_ops, self._n_streams, self._n_movables = counts
        region, expression = self._round(state, body, until, number)
        for one in before:
            one.names.after_loop()
        self.add(Loop, number, stream=state.stream, body=region_of(region), until=expression, limit=limit)

    def _round(
        self, state: TracedState, body: Callable[..., None], until: Callable[..., Any] | None, number: int
    ) -> tuple[list[Operation], Expression]:
        with self._region([body, until]) as region:
            finished(traceable(body)(state, Value(self, Round(loop=number), "the number of a loop's round")))
            found = expression_of(traceable(until)(state)) if until is not None else expression_of(False)
            self._check(found)
        return region, found

    @contextmanager
    def _region(self, functions: list[Callable[..., Any] | None]) -> Iterator[list[Operation]]:
        """What is noted within stands alone; values and states made there end with it."""
        outside, visible, states = self._ops, set(self._visible), list(self._states)
        held = [held_by(function) for function in functions]
        roles = [(one, one.role, len(one.scopes)) for one in states]
        self._ops = []
        try:
            yield self._ops
        finally:
            self._ops, self._visible, self._states = outside, visible, states
        for one, role, n_scopes in roles:
            if one.role != role or len(one.scopes) != n_scopes:
                raise TraceError(
                    f"{at_line()}: a role or scope begins inside a cond or loop and ends outside, or the reverse"
                )
        for function, was in zip(functions, held):
            changed = [name for name, now in held_by(function).items() if name in was and not same(was[name], now)]
            if changed and function is not None:
                raise TraceError(
                    f"{at_line()}: {changed[0]!r} is changed inside a cond or loop, which a graph can't follow: keep "
                    f"what changes in the state, as in s[{changed[0]!r}] = ..."
                )

    def _names(self) -> dict[TracedState, Names]:
        return {state: state.names.copy() for state in self._states}

    def _restore(self, names: Mapping[TracedState, Names]) -> None:
        for state, found in names.items():
            state.names = found.copy()


def finished(returned: Any) -> Any:
    """What a program's function returned; a coroutine is run to its end."""
    if type(returned) is not types.CoroutineType:
        return returned
    try:
        returned.send(None)
    except StopIteration as end:
        return end.value
    returned.close()
    raise TraceError(
        f"{at_line()}: the program awaits something that isn't a value of its own: a graph can't wait for that"
    )


def trace(program: Program, given: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> Graph:
    """The program's graph. Arguments in `given` are what they are; the others stay open.

    Raises TraceError, or what the program raises.
    """
    return Trace(program, given, sampling).graph()


class Trace:
    """A trace of a program, whose operations can be had even if it broke off."""

    def __init__(self, program: Program, given: Mapping[str, Any], sampling: Mapping[str, Any] | None = None) -> None:
        self.tracer = Tracer()
        self._program = program
        self._sampling = overrides(sampling or {})
        arguments = {**program.bound, **given}
        program.check_names(arguments)
        self.defaults: dict[str, Expression] = {}
        self.open: list[str] = []
        self._arguments: dict[str, Any] = {}
        for name, parameter in program.parameters.items():
            if name in arguments:
                self._arguments[name] = arguments[name]
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            self.open.append(name)
            if parameter.default is not parameter.empty:
                self.defaults[name] = expression_of(parameter.default)
            self._arguments[name] = Value(self.tracer, Argument(name=name), f"argument {name!r}")
        for name in arguments.keys() - program.parameters.keys():
            self._arguments[name] = arguments[name]

    def graph(self) -> Graph:
        tracer = self.tracer
        with tracing(tracer):
            tracer._sampling[0] = self._sampling
            state = tracer.new_state()
            returned = finished(traceable(self._program.fn)(state, **self._arguments))
            state.check_ended()
            returns = expression_of(returned)
            tracer._check(returns)
        return Graph(
            program=self._program.name,
            arguments=tuple(self.open),
            defaults=self.defaults,
            body=region_of(tracer.ops),
            returns=returns,
        ).with_functions(tracer.functions)
