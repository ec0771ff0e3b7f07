"""What an example is: a program, inputs for it, and what it takes to run it as it stands and as a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import lang
from engine import EngineConfig, make_engine
from lang.backends.base import Backend
from lang.backends.engine import EngineBackend
from lang.backends.mock import MockBackend
from lang.graph import Graph
from lang.graph.compiled import GraphProgram

Item = Mapping[str, Any]


class Work(NamedTuple):
    """What the engine did for a run."""

    passes: int
    """Forward passes of the model."""
    tokens: int
    """Computed in them, of prompts and outputs."""


@dataclass(frozen=True)
class Example:
    program: lang.Program
    items: Sequence[Item]
    """Arguments of a run each."""
    functions: Sequence[Callable[..., Any]] = ()
    """Those that the program applies to values: a saved graph is loaded with them."""
    static: Sequence[str] = ()
    """Arguments that decide what the graph looks like."""
    reply: Callable[[str], str] | None = None
    """For a program that the engine doesn't serve: what the mock answers to a prompt."""

    def graph(self, item: Item) -> Graph:
        return self.program.compile(static=self.static).graph_of(item)

    def from_json(self, item: Item) -> lang.Program:
        """The program's graph, saved and loaded again: all but the static arguments are still to be given."""
        return GraphProgram(Graph.from_json(self.graph(item).to_json(), functions=self.functions))

    def open_arguments(self, item: Item) -> Item:
        return {name: value for name, value in item.items() if name not in self.static}

    def backend(self) -> Backend:
        """With nothing cached. The engine's model is `tiny`: random weights, so answers mean nothing."""
        if self.reply is not None:
            return MockBackend(self.reply)
        return EngineBackend(make_engine(EngineConfig(model="tiny", device="cpu", dtype="float64", pool_tokens=16384)))

    def show(self) -> None:
        """Prints a run of the first item, as the program stands and as a graph, and what each took."""
        item = self.items[0]
        eager, eager_work = measured(self.program, item, self.backend())
        loaded, work = measured(self.from_json(item), self.open_arguments(item), self.backend())
        print(eager.text())
        print(f"\nreturned: {eager.ret_value!r}")
        same = (eager.text(), eager.ret_value) == (loaded.text(), loaded.ret_value)
        print(f"as a graph, saved and loaded: {'the same' if same else 'NOT THE SAME'}")
        if eager_work is not None and work is not None:
            print(f"forward passes: {eager_work.passes} eager, {work.passes} compiled")
            print(f"computed tokens: {eager_work.tokens} eager, {work.tokens} compiled")


def measured(program: lang.Program, item: Item, backend: Backend) -> tuple[lang.ProgramState, Work | None]:
    """Runs it greedily; the engine's work, None on a backend without one."""
    state = program.run(**item, backend=backend, temperature=0)
    if not isinstance(backend, EngineBackend):
        return state, None
    steps = [step for step in backend.engine.metrics.steps if step.n_prefill + step.n_decode]
    return state, Work(len(steps), sum(step.n_prefill + step.n_decode for step in steps))
