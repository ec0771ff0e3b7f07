"""A program that runs as a graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lang.function import Program
from lang.graph.execution import Execution
from lang.graph.graph import Graph
from lang.graph.tracer import trace
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
            given = {**self.source.bound, **{name: arguments[name] for name in self.static}}
            graph = trace(self.source, given)
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
        return Execution(self.graph_of(arguments), s, arguments).run()


class GraphProgram(Program):
    """A graph that was loaded, as a program."""

    def __init__(self, graph: Graph, bound: Mapping[str, Any] | None = None) -> None:
        def run(s: ProgramState, **arguments: Any) -> Any:
            return Execution(graph, s, arguments).run()

        run.__name__ = graph.program
        super().__init__(run, bound)
        self.graph = graph
        empty = inspect.Parameter.empty
        kinds = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter("s", inspect.Parameter.POSITIONAL_ONLY)]
        for name in graph.arguments:
            parameters.append(inspect.Parameter(name, kinds, default=graph.defaults.get(name, empty)))
        self._set_signature(inspect.Signature(parameters))


def _key(value: Any) -> Any:
    """Something to find the graph of a static value by. Raises TypeError for a value that nothing can be found by."""
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_key, value))
    if isinstance(value, dict):
        return ("dict", *((name, _key(item)) for name, item in value.items()))
    hash(value)
    return value
