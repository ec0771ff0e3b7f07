"""The decision log: inputs apart from decisions, each with its step.

Replaying the inputs must give the decisions back, integer for integer. A step's result is an event of that step, also
where it came in during the next one (the overlapped loop); stages of a failure: `engine.loop.Stage`. A log is a
parquet file: a row an event, the engine's configuration in the file's metadata.

| side     | kind    | request | a             | b         | tokens                     | text                         |
|----------|---------|---------|---------------|-----------|----------------------------|------------------------------|
| input    | arrive  | id      | -             | -         | prompt, as it is computed  | JSON: params, splices, rest  |
| input    | reject  | id      | -             | -         | -                          | why (the caller's fault)     |
| input    | abort   | id      | -             | -         | -                          | -                            |
| input    | hint    | -       | -             | -         | prefix                     | JSON                         |
| input    | flush   | -       | -             | -         | -                          | -                            |
| input    | measure | -       | -             | -         | -                          | counting starts afresh       |
| input    | begin   | -       | -             | -         | -                          | -                            |
| input    | result  | -       | -             | -         | a token a row, -1 for none | JSON: stops, forced, errors  |
| input    | failure | -       | stage         | -         | -                          | what the executor raised     |
| decision | refuse  | id      | -             | -         | -                          | an admission policy's reason |
| decision | defer   | id      | -             | -         | -                          | until when, seconds          |
| decision | admit   | id      | cached tokens | -         | -                          | -                            |
| decision | row     | id      | start         | new       | -                          | "branch": of one of its own  |
| decision | splice  | id      | at            | tokens    | -                          | -                            |
| decision | insert  | id      | new tokens    | duplicate | -                          | -                            |
| decision | evict   | -       | start         | tokens    | -                          | node id and namespace        |
| decision | preempt | id      | computed      | -         | -                          | -                            |
| decision | finish  | id      | output tokens | -         | -                          | reason                       |
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from engine.request import Tokens

Side = Literal["input", "decision"]


class Event(NamedTuple):
    step: int
    time: float
    """Seconds, on the engine's clock."""
    side: Side
    kind: str
    request: int = -1
    a: int = 0
    b: int = 0
    tokens: Sequence[int] | Tokens = ()
    text: str = ""


class LogError(ValueError):
    """The file is not a log that can be read."""


class Log:
    """Events in order, and the configuration of the engine that they belong to. `keep=False`: all are forgotten."""

    def __init__(
        self, config: dict[str, Any] | None = None, events: list[Event] | None = None, *, keep: bool = True
    ) -> None:
        self.keep = keep
        self.config = config or {}
        self.events = events if events is not None else []

    def __len__(self) -> int:
        return len(self.events)

    def add(self, event: Event) -> None:
        if self.keep:
            self.events.append(event)

    def inputs(self) -> Iterator[Event]:
        return (event for event in self.events if event.side == "input")

    def decisions(self) -> list[tuple[Any, ...]]:
        """The decisions without their times: (step, kind, request, a, b, text)."""
        return [(e.step, e.kind, e.request, e.a, e.b, e.text) for e in self.events if e.side == "decision"]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the whole log or nothing. Raises OSError when the disk is full or the folder is missing."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = list(zip(*self.events, strict=True)) or [()] * len(Event._fields)
        types = [pa.int64(), pa.float64(), pa.string(), pa.string(), pa.int64(), pa.int64(), pa.int64()]
        arrays = [pa.array(column, kind) for column, kind in zip(columns, types)]
        lengths = np.fromiter((len(t) for t in columns[7]), np.int64, len(columns[7]))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        flat = (
            np.concatenate([np.asarray(t, np.int64) for t in columns[7]]) if len(columns[7]) else np.empty(0, np.int64)
        )
        arrays += [pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat)), pa.array(columns[8], pa.string())]
        table = pa.table(dict(zip(Event._fields, arrays)))
        table = table.replace_schema_metadata({"radixlab.config": json.dumps(self.config, sort_keys=True)})
        path = Path(path)
        part = path.with_name(path.name + ".part")
        try:
            pq.write_table(table, part, compression="zstd")
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Log:
        """Raises LogError when the file is missing, cut short or something else."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(path)
            config = json.loads((table.schema.metadata or {})[b"radixlab.config"])
            columns = [table[name].to_pylist() for name in Event._fields]
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            raise LogError(
                f"{path} is not a readable decision log ({error}); expected an events.parquet of a run"
            ) from error
        return cls(config, [Event(*row) for row in zip(*columns)])
