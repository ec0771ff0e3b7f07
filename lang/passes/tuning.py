"""Auto-tuning: which way to make calls is faster here is measured, kept in a table, and used next time.

    table = Table.read(path)
    tune(program, batch, backend, table)      # measures, and adds to the table
    table.save(path)
    program.compile(passes=[tuned(table, backend, batch_size=64)])

An entry is for one backend with its model, one size of batches (a power of two) and one kind of operation.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from lang.backends.base import Backend
from lang.capabilities import NotServed
from lang.graph.expressions import Model
from lang.graph.graph import Graph
from lang.graph.ops import Gen, Operation, Select
from lang.passes.base import Notes, Pass
from lang.passes.instructions import decoded, one_call_for_siblings, select_by_decoding
from lang.passes.prompts import named
from lang.passes.rewrite import each_operation

if TYPE_CHECKING:
    from lang.function import Program

GREEDY = ("greedy_token_selection",)


class TableError(ValueError):
    """The file is no table of measurements."""


class Entry(Model):
    backend: str
    """With its model: `Backend.identity`."""
    batch: int
    """Programs at a time: a power of two."""
    operation: str
    """select/CHOICES or siblings/SAMPLES, numbers as powers of two."""
    seconds: Mapping[str, float]
    """A program, median of the rounds, by variant."""
    rounds: int

    @property
    def best(self) -> str:
        return min(self.seconds, key=lambda variant: self.seconds[variant])


class _File(Model):
    format: Literal[1] = 1
    entries: tuple[Entry, ...] = ()


class Table:
    """What was measured."""

    def __init__(self, entries: Sequence[Entry] = ()) -> None:
        self._entries = {_key(entry.backend, entry.batch, entry.operation): entry for entry in entries}

    @property
    def entries(self) -> tuple[Entry, ...]:
        return tuple(self._entries.values())

    def add(self, entry: Entry) -> None:
        """In place of what was measured before."""
        self._entries[_key(entry.backend, entry.batch, entry.operation)] = entry

    def best(self, backend: str, batch: int, operation: str) -> str | None:
        """The fastest variant at the nearest size of batches; None where nothing was measured."""
        found = [one for one in self.entries if (one.backend, one.operation) == (backend, operation)]
        if not found:
            return None
        return min(found, key=lambda one: abs(one.batch.bit_length() - bucket(batch).bit_length())).best

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Table:
        """Empty where there is no file yet. Raises TableError for a file that is something else."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return cls()
        try:
            return cls(_File.model_validate_json(text).entries)
        except ValidationError as error:
            raise TableError(f"{path} is no table of measurements: {error.errors()[0]['msg']}; remove it") from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(_File(entries=self.entries).model_dump_json(indent=1), encoding="utf-8")
        os.replace(part, path)


def bucket(n: int) -> int:
    """The power of two at or below."""
    return 1 << (n.bit_length() - 1)


def tune(
    program: Program,
    batch: Sequence[Any],
    backend: Backend,
    table: Table,
    *,
    rounds: int = 3,
    methods: tuple[str, ...] = GREEDY,
    **sampling: Any,
) -> tuple[Entry, ...]:
    """Runs the batch in each way that its calls could be made, in turn, and adds the times to the table.

    methods: the rules of selects that may be answered by decoding (see `select_by_decoding`). sampling: as for
    `run_batch`. Raises what a run raises: nothing is learnt from programs that fail. Returns the entries added.
    """
    if not batch or rounds < 1:
        raise ValueError(f"tune() of a batch of {len(batch)} in {rounds} rounds: it takes 1 or more of both")
    variants = _variants(program.trace(), methods)
    entries: list[Entry] = []
    for operations, passes in variants.items():
        compiled = {name: program.compile(passes=made) for name, made in passes.items()}
        seconds: dict[str, list[float]] = {name: [] for name in compiled}
        for round_ in range(rounds):
            names = list(compiled)
            for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
                seconds[name].append(_seconds(compiled[name], batch, backend, sampling))
        medians = {name: statistics.median(times) / len(batch) for name, times in seconds.items()}
        for operation in operations:
            entry = Entry(
                backend=backend.identity,
                batch=bucket(len(batch)),
                operation=operation,
                seconds=medians,
                rounds=rounds,
            )
            table.add(entry)
            entries.append(entry)
    return tuple(entries)


def tuned(table: Table, backend: Backend, batch_size: int, methods: tuple[str, ...] = GREEDY) -> Pass:
    """Makes each call as was fastest when it was measured. What wasn't stays as it is, and the report says so."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} is not allowed: it must be 1 or more")

    def change(graph: Graph, notes: Notes) -> Graph:
        gens = [op for op in one_call_for_siblings().change(graph, Notes()).every() if isinstance(op, Gen)]
        together = {op.id for op in gens if op.n_samples > 1 and best(op, f"siblings/{bucket(op.n_samples)}", notes)}
        made_so = {op.id: op for op in gens if _first(op) in together}

        def choose(op: Operation) -> Operation:
            if isinstance(op, Gen):
                return made_so.get(op.id, op)
            if not isinstance(op, Select) or op.method not in methods or op.how != "score":
                return op
            return decoded(op, notes, methods) if best(op, f"select/{bucket(len(op.choices))}", notes) else op

        return each_operation(graph, choose)

    def best(op: Gen | Select, operation: str, notes: Notes) -> bool:
        """Another way than the usual was faster."""
        found = table.best(backend.identity, batch_size, operation)
        where = f"{operation} at {backend.identity}, batches of {bucket(batch_size)}"
        notes.changes.append(f"{named(op)}: {found or 'as it is'} ({where}{'' if found else ' was not measured'})")
        return found in ("together", "decode")

    return Pass("tuned", change)


def _first(op: Gen) -> int | None:
    """The gen whose call gives it a sample."""
    if op.sample_of is not None:
        return op.sample_of[0]
    return op.id if op.n_samples > 1 else None


def _variants(graph: Graph, methods: tuple[str, ...]) -> dict[tuple[str, ...], dict[str, list[Pass]]]:
    """For groups of operations: ways to make them."""
    found: dict[tuple[str, ...], dict[str, list[Pass]]] = {}
    selects = [op for op in graph.every() if isinstance(op, Select) and op.method in methods]
    if selects:
        operations = tuple(sorted({f"select/{bucket(len(op.choices))}" for op in selects}))
        found[operations] = {"score": [], "decode": [select_by_decoding(methods)]}
    together = one_call_for_siblings().change(graph, Notes())
    samples = {op.n_samples for op in together.every() if isinstance(op, Gen) and op.n_samples > 1}
    if samples:
        operations = tuple(sorted({f"siblings/{bucket(n)}" for n in samples}))
        found[operations] = {"apart": [], "together": [one_call_for_siblings()]}
    return found


def _seconds(program: Program, batch: Sequence[Any], backend: Backend, sampling: Mapping[str, Any]) -> float:
    """Of the whole batch, from an empty cache where it can be emptied."""
    with contextlib.suppress(NotServed):
        backend.flush_cache()
    begun = backend.clock.now()
    for state in program.run_batch(batch, backend=backend, **sampling):
        if (problem := state.error()) is not None:
            raise problem
    return backend.clock.now() - begun


def _key(backend: str, batch: int, operation: str) -> tuple[str, int, str]:
    return backend, batch, operation
