"""A program that runs as a graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lang.abstract import TraceError, at_line
from lang.backends.base import Backend, Tags
from lang.function import Program, default_backend
from lang.graph.environment import Environment
from lang.graph.execution import Execution
from lang.graph.graph import Graph
from lang.graph.source import traceable
from lang.graph.tracer import finished
from lang.state import ProgramState

if TYPE_CHECKING:
    from lang.passes.base import Pass, Report


class CompiledProgram(Program):
    """Is called, run and batched as the program that it was made of."""

    def __init__(
        self,
        program: Program,
        *,
        static: Sequence[str] = (),
        passes: Sequence[Pass] = (),
        graphs: dict[Any, Graph] | None = None,
        bound: Mapping[str, Any] | None = None,
    ) -> None:
        """Raises TraceError for what a graph can't hold, TypeError for `static` names that aren't arguments."""
        spec_tokens = max([program.num_api_spec_tokens, *(one.num_api_spec_tokens for one in passes)])
        super().__init__(program.fn, program.bound if bound is None else bound, spec_tokens)
        program.check_names(static)
        self.source = program
        self.static = tuple(static)
        self.passes = tuple(passes)
        self.reports: dict[Any, tuple[Report, ...]] = {}
        """What the passes did, by the values of the static arguments."""
        self._graphs: dict[Any, Graph] = {} if graphs is None else graphs
        self._set_signature(program._signature)
        self.fn = self._run_graph
        self.is_async = False  # a graph waits by itself
        if not self.static or all(name in self.bound for name in self.static):
            self.graph_of(self.bound)

    def __repr__(self) -> str:
        return f"<compiled program {self.name}>"

    @property
    def graph(self) -> Graph:
        """Raises TypeError for a program with static arguments, which has one for each of their values: `graph_of`."""
        return self.graph_of(self.bound)

    def graph_of(self, arguments: Mapping[str, Any]) -> Graph:
        """The graph for these values of the static arguments, traced when they are first met."""
        if missing := [name for name in self.static if name not in arguments]:
            raise TypeError(f"program {self.name!r}: its graph depends on {', '.join(missing)}: give their values")
        values = tuple(_key(arguments[name]) for name in self.static)
        if values not in self._graphs:
            given = {name: arguments[name] for name in self.static}
            graph = self.source.trace(**given)
            reports = []
            for pass_ in self.passes:
                graph, report = pass_.apply(graph)
                reports.append(report)
            self._graphs[values] = graph
            self.reports[values] = tuple(reports)
        return self._graphs[values]

    @property
    def report(self) -> str:
        """What the passes did, in words."""
        return "\n\n".join(str(report) for reports in self.reports.values() for report in reports)

    def bind(self, **kwargs: Any) -> CompiledProgram:
        self.check_names(kwargs)
        made = CompiledProgram(
            self.source, static=self.static, passes=self.passes, graphs=self._graphs, bound={**self.bound, **kwargs}
        )
        made.reports = self.reports
        return made

    def _run_graph(self, s: ProgramState, /, *args: Any, **kwargs: Any) -> Any:
        if self._plain and not args and kwargs.keys() == self._own:
            arguments = kwargs
        else:
            bound = self._signature.bind(s, *args, **kwargs)
            bound.apply_defaults()
            arguments = dict(bound.arguments)
            arguments.pop("s")
        for name, value in self.source.bound.items():
            if name not in self.static and arguments.get(name, value) is not value:
                raise TypeError(
                    f"program {self.name!r}: {name!r} became part of the graph when it was compiled and can't be "
                    f"given again: leave it open, or compile(static=[{name!r}])"
                )
        if not isinstance(s, ProgramState):  # a program that calls this one is traced: it becomes part of that graph
            return finished(traceable(self.source.fn)(s, **arguments))
        return Execution(self.graph_of(arguments), s, arguments).run()


class GraphProgram(Program):
    """A graph as a program: one that was loaded, say. Its arguments are those that the graph leaves open."""

    def __init__(self, graph: Graph, bound: Mapping[str, Any] | None = None) -> None:
        """Raises GraphError when a function that it applies isn't there."""
        graph.check_functions()

        def run(s: ProgramState, **arguments: Any) -> Any:
            if not isinstance(s, ProgramState):
                raise TraceError(
                    f"{at_line()}: {graph.program!r} is a graph already and can't be traced into another: trace the "
                    "program that it was made of"
                )
            return Execution(graph, s, {**defaults, **arguments}).run()

        run.__name__ = graph.program
        super().__init__(run)
        self.graph = graph
        self.file = next((op.line.rpartition(":")[0] for op in graph.every() if op.line), self.file)
        defaults = defaults_of(graph)
        self._set_signature(_signature(graph, defaults))
        self.check_names(bound or {})
        self.bound = dict(bound or {})

    def __repr__(self) -> str:
        return f"<graph program {self.name}>"

    def bind(self, **kwargs: Any) -> GraphProgram:
        self.check_names(kwargs)
        return GraphProgram(self.graph, {**self.bound, **kwargs})

    def trace(self, **given: Any) -> Graph:
        """Its graph, which exists already. Raises TypeError for arguments: they can't become part of it any more."""
        if given or self.bound:
            name = min({**self.bound, **given})
            raise TypeError(
                f"program {self.name!r} is a graph already: {name!r} can't become part of it; leave it to run(...), or "
                "trace the program that the graph was made of"
            )
        return self.graph

    def cache(self, backend: Backend | None = None) -> str:
        from lang.graph.prefix import constant_part

        backend = backend or default_backend()
        prompt = constant_part(self.graph.ops)
        if prompt.pieces:
            backend.commit(prompt, Tags(program=self.name))
        return prompt.text(backend.style)


def defaults_of(graph: Graph) -> dict[str, Any]:
    """The values that arguments have if a run leaves them out."""
    no_run: Any = None  # constants need none
    environment = Environment(graph, {}, no_run)
    return {name: environment.value(default) for name, default in graph.defaults.items()}


def _signature(graph: Graph, defaults: Mapping[str, Any]) -> inspect.Signature:
    """In the program's order; those that Python allows only as keywords there, as keywords."""
    parameters = [inspect.Parameter("s", inspect.Parameter.POSITIONAL_ONLY)]
    only_named = False
    for name in graph.arguments:
        default = defaults.get(name, inspect.Parameter.empty)
        if default is inspect.Parameter.empty and parameters[-1].default is not inspect.Parameter.empty:
            only_named = True
        kind = inspect.Parameter.KEYWORD_ONLY if only_named else inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


def _key(value: Any) -> Any:
    """Something to find the graph of a static value by. Raises TypeError for a value that nothing can be found by."""
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_key, value))
    if isinstance(value, dict):
        return ("dict", *((name, _key(item)) for name, item in value.items()))
    hash(value)
    return type(value), value
