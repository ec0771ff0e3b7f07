"""What a pass is, and what it says of what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lang.graph.graph import Graph


@dataclass(frozen=True)
class Report:
    """What a pass did to a graph."""

    name: str
    calls_before: int
    calls_after: int
    """Calls that a run makes at most, those in branches and one round of a loop included."""
    shared_before: int
    shared_after: int
    """Characters of prompts that are the same for every run of the program, summed over its calls."""
    changes: tuple[str, ...] = ()
    """In words, with the program's lines."""
    changed_prompts: tuple[str, ...] = ()
    """Calls (name and line) whose prompt isn't the program's own any more."""
    changed_meta: tuple[str, ...] = ()
    """Calls whose meta info is another, and how."""

    def __str__(self) -> str:
        lines = [
            f"{self.name}: calls {self.calls_before} -> {self.calls_after}, "
            f"constant prefixes {self.shared_before} -> {self.shared_after} characters"
        ]
        lines += [f"  {change}" for change in self.changes] or ["  nothing to do"]
        lines += [f"  prompt changed: {call}" for call in self.changed_prompts]
        lines += [f"  meta info changed: {call}" for call in self.changed_meta]
        return "\n".join(lines)


@dataclass
class Notes:
    """What a pass notes while it works."""

    changes: list[str] = field(default_factory=list)
    changed_prompts: list[str] = field(default_factory=list)
    changed_meta: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pass:
    """Makes another graph of a graph. The program does the same, but for what its report says."""

    name: str
    change: Callable[[Graph, Notes], Graph]
    num_api_spec_tokens: int = 0
    """On an API, the program is run with so many (see `lang.function`)."""

    def apply(self, graph: Graph) -> tuple[Graph, Report]:
        """Raises GraphError when the pass has left a graph that doesn't fit together."""
        from lang.passes.prompts import n_calls, shared_characters

        notes = Notes()
        changed = self.change(graph, notes)
        changed._check()
        return changed, Report(
            self.name,
            n_calls(graph),
            n_calls(changed),
            shared_characters(graph),
            shared_characters(changed),
            tuple(notes.changes),
            tuple(notes.changed_prompts),
            tuple(notes.changed_meta),
        )
