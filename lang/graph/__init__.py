"""Programs as dataflow graphs: traced, printed, saved, changed by passes, and run."""

from lang.graph.compiled import CompiledProgram, GraphProgram
from lang.graph.graph import Graph, GraphError
from lang.graph.tracer import trace

__all__ = ["CompiledProgram", "Graph", "GraphError", "GraphProgram", "trace"]
