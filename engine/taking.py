"""What a step's tokens do to their requests: they are appended, a grammar's forced ones behind them, until one ends."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from engine.constraints.recorded import RecordedConstraint
from engine.constraints.session import Forced
from engine.executor.base import Batch, Row, RowRecord, StepResult
from engine.output import Outputs
from engine.request import Fault, FinishReason, Request, RequestError, TokenLogprob
from engine.scheduler import Scheduler


class Taken(NamedTuple):
    ends: list[tuple[Request, FinishReason]]
    """Requests that end with the step, and why; their `error` and `fault` are set."""
    grown: list[Request]
    """Those that got a token."""
    tokens: list[int]
    """For the log: the token of each row, -1 for none."""
    extra: str
    """For the log: what a replay needs beside the tokens, by row. JSON."""


class Taking:
    """Hands tokens to requests."""

    def __init__(self, outputs: Outputs, scheduler: Scheduler) -> None:
        self._outputs = outputs
        self._scheduler = scheduler

    def take(self, batch: Batch, result: StepResult, now: float) -> Taken:
        """`now`: when the tokens were there, on the engine's clock."""
        records: dict[int, RowRecord] = {}
        errors: dict[int, str] = {}
        ends: list[tuple[Request, FinishReason]] = []

        def fail(i: int, error: str, fault: Fault) -> None:
            request = batch.rows[i].request.root
            request.error, request.fault, errors[i] = error, fault, error
            ends.append((request, FinishReason.ERROR))

        for i, row in enumerate(batch.rows):
            request = row.request
            if request.finished:  # while the step was under way
                continue
            if (error := result.errors[i]) is not None:
                if request.root.error is None:
                    fail(i, error, Fault.ENGINE)
                continue
            if request.owner is not None:
                continue
            if request.constraint is not None and request.constraint.error is not None:
                fail(i, request.constraint.error, Fault.CALLER)
                continue
            if result.scored[i]:
                _add_scored(row, result.scored[i])
            token = result.tokens[i]
            if token is None:
                if row.end == request.n_tokens:
                    ends.append((request, FinishReason.LENGTH))
                continue
            request.append(token)
            if (logprob := result.logprobs[i]) is not None:
                request.logprobs.append(logprob)
            known = None if result.recorded is None else result.recorded[i]
            try:
                records[i], reason = self._grow(request, token, known, now)
            except RequestError as failure:
                request.cut(request.output_tokens - 1)  # the token that its grammar couldn't follow
                fail(i, str(failure), Fault.CALLER)
                continue
            if reason is not None:
                ends.append((request, reason))
        return Taken(
            ends,
            [batch.rows[i].request for i in records],
            [-1 if token is None else token for token in result.tokens],
            _extra(result.seconds, records, errors),
        )

    def _grow(
        self, request: Request, token: int, known: RowRecord | None, now: float
    ) -> tuple[RowRecord, FinishReason | None]:
        """The request's newest token was appended: what its grammar forces after it is too. Says what that was, and why
        the output ends, or None. Raises GrammarError.

        known: of a recorded run.
        """
        n_before = len(request.token_times)
        under_way = request.n_computed >= request.n_tokens
        room = request.max_tokens - request.output_tokens
        forced, complete = _forced_after(request, token, known, room)
        for more in forced:
            request.append(more)
        if request.taken_back and request.n_again is None:
            request.n_again = self._outputs.n_again(request) if known is None else known.n_again
        new = request.tokens[request.prompt_tokens + n_before : request.n_tokens].tolist()
        n_chosen = len(new) - len(forced)
        reason = None
        for n, taken in enumerate(new, n_before + 1):
            last = n == n_before + len(new)
            stop = known.stop if known is not None and last else None
            reason = self._outputs.take(request, taken, n, stop, complete=complete and last)
            if reason is not None:
                new = new[: n - n_before]
                request.cut(n)
                break
        request.token_times += [now] * len(new)
        self._scheduler.generated(request, len(new))
        kept = forced[: max(0, len(new) - n_chosen)]
        if request.constraint is not None:
            known_end = complete and len(forced) < room  # decoding would waste a step under way there too
            request.constraint.forced_tokens -= len(forced) - len(kept)
            request.constraint.passes_saved += max(0, len(kept) - (under_way and not known_end))
        stop_string = request.stop_match if isinstance(request.stop_match, str) else None
        return RowRecord(stop_string, kept, complete, request.n_again), reason


def _forced_after(request: Request, token: int, known: RowRecord | None, room: int) -> Forced:
    constraint = request.constraint
    if constraint is None or token in request.eos:
        return Forced((), False)
    if isinstance(constraint, RecordedConstraint) and known is not None:
        constraint.recorded = Forced(known.forced, known.complete)
    return constraint.follow(token, room)


def _add_scored(row: Row, found: Sequence[TokenLogprob]) -> None:
    """Appends what isn't known yet: after a preemption some positions are computed twice."""
    request, params = row.request, row.request.params
    for position, logprob in enumerate(found, row.logit_start + 1):
        if position < request.prompt_tokens:
            if params.prompt_logprobs is not None and position == params.prompt_logprobs_start + request.n_scored:
                request.prompt_logprobs.append(logprob._replace(top=logprob.top[: params.prompt_logprobs]))
                request.n_scored += 1
        elif params.logprobs is not None and position == request.prompt_tokens + len(request.logprobs):
            request.logprobs.append(logprob._replace(top=logprob.top[: params.logprobs]))


def _extra(seconds: float, records: Mapping[int, RowRecord], errors: Mapping[int, str]) -> str:
    extra: dict[str, Any] = {"seconds": seconds}
    if stop := {i: row.stop for i, row in records.items() if row.stop is not None}:
        extra["stop"] = stop
    if forced := {i: row.forced for i, row in records.items() if row.forced}:
        extra["forced"] = forced
    if complete := [i for i, row in records.items() if row.complete]:
        extra["complete"] = complete
    if again := {i: row.n_again for i, row in records.items() if row.n_again is not None}:
        extra["again"] = again
    if errors:
        extra["errors"] = errors
    return json.dumps(extra)
