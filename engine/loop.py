"""Two ways to get a batch through the executor, with the same tokens: wait for each step, or prepare one ahead.

    plain        schedule 1, launch 1, sample 1, collect 1 | schedule 2, launch 2, sample 2, collect 2 | ...
    overlapped   schedule 1, launch 1, sample 1 | schedule 2, launch 2, collect 1, sample 2 | schedule 3, launch 3, ...

In the overlapped loop the device always has a step to run while the host collects, schedules and launches. A row of
step 2 may go on from a token that step 1 has yet to choose: the executor takes it from the device. What step 1 ends is
known after step 2 was launched; its row there is wasted, and nobody looks at what comes out of it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from engine.clock import stopwatch
from engine.constraints.base import Mask
from engine.executor.base import Batch, Executor, ExecutorDead, StepResult
from engine.request import Request


class Stage(enum.IntEnum):
    """Where a step was when it failed."""

    LAUNCH = 0
    SAMPLE = 1
    COLLECT = 2


class Failure(NamedTuple):
    stage: Stage
    error: Exception


class UnderWay(NamedTuple):
    """A step whose tokens are being chosen on the device."""

    batch: Batch
    pending: Any


class Loop:
    """Runs batches. `take` gets a step's result, `fail` a batch and what went wrong; both say which requests ended.

    `masks` says what grammars allow the rows, once the tokens before are known; it may wait.
    """

    def __init__(
        self,
        executor: Executor,
        take: Callable[[Batch, StepResult], list[Request]],
        fail: Callable[[Batch, Failure], list[Request]],
        masks: Callable[[Batch], Sequence[Mask | None] | None],
    ) -> None:
        self.executor = executor
        self.under_way: UnderWay | None = None
        self.collected = 0.0
        """Reading of the stopwatch when the last result was there."""
        self._take, self._fail, self._masks = take, fail, masks

    def plain(self, batch: Batch) -> list[Request]:
        """Runs the batch and waits for its tokens."""
        if not batch.rows:
            return []
        pending = self._try(Stage.LAUNCH, batch)
        if not isinstance(pending, Failure):
            pending = self._try(Stage.SAMPLE, pending, batch)
        result = pending if isinstance(pending, Failure) else self._try(Stage.COLLECT, pending)
        self.collected = stopwatch()
        return self._fail(batch, result) if isinstance(result, Failure) else self._take(batch, result)

    def overlapped(self, batch: Batch) -> list[Request]:
        """Starts the batch, takes the tokens of the one before while it runs, then has its own chosen.

        Choosing comes last because it may need to know the tokens before: penalties, masks, ends.
        """
        before, self.under_way = self.under_way, None
        pending = self._try(Stage.LAUNCH, batch) if batch.rows else None
        self.collected = stopwatch()
        done: list[Request] = []
        if before is not None:
            result = self._try(Stage.COLLECT, before.pending)
            self.collected = stopwatch()
            if isinstance(result, Failure):
                done += self._fail(before.batch, result)
                pending = None  # all that was built on the lost step begins anew
            else:
                done += self._take(before.batch, result)
        if pending is not None and not isinstance(pending, Failure):
            pending = self._try(Stage.SAMPLE, pending, batch)
        if isinstance(pending, Failure):
            done += self._fail(batch, pending)
        elif pending is not None:
            self.under_way = UnderWay(batch, pending)
            for row in batch.rows:
                if row.awaits_token:
                    row.request.expect()
        return done

    def _try(self, stage: Stage, *args: Any) -> Any:
        """What the executor gives, or a Failure."""
        try:
            match stage:
                case Stage.LAUNCH:
                    return self.executor.launch(*args)
                case Stage.SAMPLE:
                    pending, batch = args
                    return self.executor.sample(pending, self._masks(batch))
                case Stage.COLLECT:
                    return self.executor.collect(*args)
        except ExecutorDead:
            raise
        except Exception as error:
            return Failure(stage, error)
