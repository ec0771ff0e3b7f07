"""An executor without a model: it gives back the tokens and the step times of a recorded run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.clock import VirtualClock
from engine.executor.base import Batch, ExecutorDead, RowRecord, StepResult
from engine.log import Event, Log
from engine.loop import Stage


class ReplayDivergence(ExecutorDead):
    """The engine decided something else than the recorded run did, so its recorded tokens don't fit."""


class Recorded(NamedTuple):
    rows: tuple[tuple[int, int, int], ...]
    """(request, start, n_new) of each row."""
    result: Event | None
    """None: nobody waited for it, as the step before was lost."""

    def fail_at(self, stage: Stage) -> None:
        """Raises RuntimeError if the step failed there."""
        if self.result is not None and self.result.kind == "failure" and self.result.a == stage:
            raise RuntimeError(self.result.text)


class ReplayExecutor:
    """Plays a log's results in order, moving the clock to the time at which each was there.

    Raises ReplayDivergence when a batch isn't the recorded one.
    """

    device = "replay"

    def __init__(self, log: Log, clock: VirtualClock) -> None:
        self.page_size: int = log.config["engine"]["page_size"]
        self.n_pages: int = log.config["n_pages"]
        self.max_context: int = log.config["max_context"]
        self.vocab_size: int = log.config["vocab_size"]
        self._clock = clock
        rows: dict[int, list[tuple[int, int, int]]] = {}
        results: dict[int, Event] = {}
        for event in log.events:
            if event.kind == "row":
                rows.setdefault(event.step, []).append((event.request, event.a, event.b))
            elif event.kind in ("result", "failure"):
                results[event.step] = event
        self._recorded = {step: Recorded(tuple(rows[step]), results.get(step)) for step in rows}

    def launch(self, batch: Batch) -> Batch:
        recorded = self._recorded.get(batch.step)
        rows = tuple((row.request.id, row.start, row.n_new) for row in batch.rows)
        if recorded is None or recorded.rows != rows:
            there = "no such step" if recorded is None else f"rows {recorded.rows[:4]}..."
            raise ReplayDivergence(f"step {batch.step}: the recording has {there}, the engine built rows {rows[:4]}...")
        recorded.fail_at(Stage.LAUNCH)
        return batch

    def sample(self, pending: Batch, masks: Sequence[Any] | None) -> Batch:
        self._recorded[pending.step].fail_at(Stage.SAMPLE)
        return pending

    def collect(self, pending: Batch) -> StepResult:
        recorded = self._recorded[pending.step]
        event = recorded.result
        if event is None:
            raise ReplayDivergence(f"step {pending.step}: the recording ends before its result")
        self._clock.sleep_until(event.time)
        recorded.fail_at(Stage.COLLECT)
        extra = json.loads(event.text)
        stops = {int(row): stop for row, stop in extra.get("stop", {}).items()}
        forced = {int(row): tuple(tokens) for row, tokens in extra.get("forced", {}).items()}
        complete = extra.get("complete", ())
        again = {int(row): n for row, n in extra.get("again", {}).items()}
        errors = {int(row): error for row, error in extra.get("errors", {}).items()}
        n = len(pending.rows)
        return StepResult(
            tokens=tuple(None if token < 0 else token for token in event.tokens),
            logprobs=(None,) * n,
            scored=((),) * n,
            errors=tuple(errors.get(i) for i in range(n)),
            seconds=extra["seconds"],
            recorded=tuple(RowRecord(stops.get(i), forced.get(i, ()), i in complete, again.get(i)) for i in range(n)),
        )
