"""Continuous batching: who runs in a step, on which tokens, and what gives way.

One pass builds one batch: decodes first (they never starve), then the prompts under way, then new admissions in the
policy's order, all under one token budget. A prompt's pages enter the cache when they are scheduled, not when they are
computed: K and V of a layer are stored before that layer's attention, so a request admitted later in the same pass
reads what an earlier row of the same batch writes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from engine.assembly import Assembler
from engine.cache.base import NO_MATCH, Match
from engine.estimate import OutputEstimate
from engine.executor.base import Batch, Row
from engine.log import Event, Log
from engine.memory import KVMemory
from engine.policies.base import Hint, Node, RequestView, SchedulePolicy, broken
from engine.policies.guard import Guard
from engine.prefix_groups import prefix_groups
from engine.request import FinishReason, Request, Status


@dataclass(frozen=True, slots=True)
class Limits:
    max_batch_tokens: int
    """New tokens of one step, decodes included."""
    max_running: int
    """Requests that run at once; at most `max_batch_tokens`, so that all of them can decode in one step."""


class View:
    """What the schedule policy sees (`engine.policies.base.ScheduleView`)."""

    def __init__(self, scheduler: Scheduler, rng: random.Random) -> None:
        self._scheduler = scheduler
        self.rng = rng
        self.now = 0.0
        self.page_size = scheduler.memory.page_size

    @property
    def free(self) -> int:
        return self._scheduler.memory.pool.n_free * self.page_size

    @property
    def evictable(self) -> int:
        return self._scheduler.memory.cache.evictable_tokens

    @property
    def running(self) -> Sequence[Request]:
        return tuple(self._scheduler.running.values())

    @property
    def clients(self) -> Sequence[str]:
        both = (*self._scheduler.running.values(), *self._scheduler.waiting.values())
        return tuple(dict.fromkeys(request.client for request in both))

    def match(self, request: RequestView) -> int:
        return self._scheduler.memory.match(cast(Request, request)).n_tokens

    def path(self, request: RequestView) -> Sequence[Node]:
        return self._scheduler.memory.match(cast(Request, request)).path


class Scheduler:
    def __init__(
        self, *, memory: KVMemory, policy: SchedulePolicy, limits: Limits, rng: random.Random, log: Log
    ) -> None:
        self.memory = memory
        self.guard = Guard(policy)
        self.limits = limits
        self.assembler = Assembler(memory, self._chunk, self, self._decide)
        self.log = log
        self.view = View(self, rng)
        self.estimate = OutputEstimate()
        self.waiting: dict[int, Request] = {}
        self.running: dict[int, Request] = {}
        """In order of admission."""
        self.step = 0
        self.preemptions = 0
        self.recomputed_tokens = 0
        self.n_cached_in_pass = 0
        """Prompt tokens found in the cache during the last pass."""

    # ---- coming and going

    @property
    def n_running(self) -> int:
        return len(self.running)

    @property
    def spare_rows(self) -> int:
        """How many more rows a batch may have than requests run."""
        return self.limits.max_running - len(self.running)

    def __contains__(self, request_id: int) -> bool:
        return request_id in self.waiting or request_id in self.running

    def add(self, request: Request) -> None:
        self.waiting[request.id] = request
        self.guard.ask("on_arrival", request, self.view)

    def hint(self, hint: Hint) -> None:
        self.memory.cache.hint(hint)
        self.guard.ask("on_hint", hint, self.view)

    def generated(self, request: Request, n: int) -> None:
        """`n` more tokens of the request are there."""
        self.guard.ask("on_tokens", request, n, self.view)

    def finish(self, request: Request, reason: FinishReason, *, keep: bool = True) -> None:
        """Ends a request at any stage. What it computed goes to the cache, unless `keep` says it can't be trusted."""
        if request.id in self.running:
            self.memory.release(request, keep=keep, ended=True)
            del self.running[request.id]
        else:
            del self.waiting[request.id]
        request.status = Status.FINISHED
        request.finish_reason = reason
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.estimate.on_finish(request)
        self.guard.ask("on_done", request, self.view)
        self._decide("finish", request.id, request.output_tokens, text=reason.value)

    # ---- one pass

    def schedule(self, step: int, now: float) -> Batch:
        """Builds the step's batch. Every row's pages are there and locked when it returns."""
        self.step = self.memory.step = step
        self.view.now = self.memory.cache.now = now
        self.estimate.on_step()
        self.n_cached_in_pass = 0
        self.assembler.begin(step)
        preempted = self._preempt()
        rows: list[Row] = []
        while True:
            budget = self._continue(rows)
            if not preempted:
                self._admit(rows, budget)
            if rows or not self.running or any(request.awaits_end for request in self.running.values()):
                break
            self._preempt_one(next(reversed(self.running.values())))  # prompts under way block one another
            preempted = True
        for row in rows:
            self._decide("row", row.request.id, row.start, row.n_new, "branch" if row.request.owner else "")
        copies = self.assembler.take_copies() if rows else ()  # without rows they belong before the next batch
        return Batch(step, tuple(rows), prefix_groups(rows), copies)

    def _continue(self, rows: list[Row]) -> int:
        """Rows of the running requests: decodes, those with forced tokens last, then prompts under way.

        Returns what is left of the budget.
        """
        budget = self.limits.max_batch_tokens
        prompts: list[Request] = []
        forced: list[Request] = []
        for request in self.running.values():
            if request.awaits_end:
                continue
            n = request.n_tokens - request.n_computed
            if n > 1 or request.output_tokens == 0:
                new = request.n_computed >= max(request.prompt_tokens, request.n_ever_computed)
                (forced if new else prompts).append(request)
            elif self.memory.grow(request, request.n_tokens):
                rows.append(self._row(request, 1))
                budget -= 1
        for request in forced:
            n = min(request.n_tokens - request.n_computed, budget)
            if n > 0 and self.memory.grow(request, request.n_computed + n):
                rows.append(self._row(request, n))
                budget -= n
        for request in prompts:
            if budget <= 0:
                break
            start = request.n_computed
            gained = self.memory.extend(request)
            self._count_cached(request, start, start + gained)
            if gained and request.splices:
                self.assembler.admitted(request, rows)
            budget -= self._prefill(request, rows, budget)
        return budget

    def _prefill(self, request: Request, rows: list[Row], budget: int) -> int:
        """A row for the next chunk of the request's prompt, or rows for the branches that are to be spliced into it.

        Returns their tokens; 0 when there is no memory for any.
        """
        if not request.splices:
            return self._chunk(request, rows, budget, request.n_tokens)
        n_cached = request.n_cached
        used = self.assembler.advance(request, rows, budget)
        self.n_cached_in_pass += request.n_cached - n_cached
        return used

    def _chunk(self, request: Request, rows: list[Row], budget: int, end: int) -> int:
        """A row for tokens of a prompt up to `end`, or for fewer. Returns its tokens; 0 when there is no memory."""
        left = end - request.n_computed
        n = left
        if left > 1 or budget < left:
            n = self.guard.ask("chunk", request, budget, self.view)
            if not isinstance(n, int) or not 1 <= n <= budget:
                raise broken(
                    self.guard.policy, "chunk", f"gave {n!r} tokens; it must be from 1 to the budget of {budget}"
                )
            n = min(n, left)
        held = request.n_pages * self.memory.page_size - request.n_computed
        n = min(n, held + self.memory.available)
        if n < left:  # end on a page border, so that the next chunk can join what others cache meanwhile
            ragged = (request.n_computed + n) % self.memory.page_size
            n -= ragged if ragged < n else 0
        if n <= 0 or not self.memory.grow(request, request.n_computed + n):
            return 0
        rows.append(self._row(request, n))
        return n

    def _row(self, request: Request, n: int) -> Row:
        start = request.n_computed
        end = start + n
        again = min(end, request.n_ever_computed) - start
        if again > 0:
            request.root.n_recomputed += again
            self.recomputed_tokens += again
        request.n_computed = end
        request.n_ever_computed = max(request.n_ever_computed, end)
        if start < request.prompt_tokens:
            self.memory.publish(request, min(end, request.prompt_tokens))
        return Row(request, start, n, sample=end == request.n_tokens and request.max_tokens > request.output_tokens)

    def _admit(self, rows: list[Row], budget: int) -> None:
        if not self.waiting or budget <= 0:
            return
        memory = self.memory
        reserved = sum(self._still_needs(request) for request in self.running.values())
        yielded = 0
        for given in self.guard.ask_each("order", tuple(self.waiting.values()), self.view):
            request = self._one_of(self.waiting, given, "order", "waiting")
            yielded += 1
            if budget <= 0 or self.spare_rows <= self.assembler.n_more_rows:
                break
            match = memory.match(request)
            needs = memory.whole_pages(self._wants(request) - match.n_tokens)
            if needs + reserved > memory.available - memory.unlocked_in(match):
                if self.running:
                    break
                match = NO_MATCH  # alone and yet it doesn't fit: what it would hold of a whole entry is in its way
            n_cached = self._start(request, match)
            if request.splices:
                self.assembler.admitted(request, rows)
            n = self._prefill(request, rows, budget)
            budget -= n
            reserved += self._still_needs(request)
            self.guard.ask("on_scheduled", request, n, n_cached, self.view)
        if not yielded and not self.running:
            raise broken(
                self.guard.policy,
                "order",
                f"yielded none of {len(self.waiting)} waiting requests while nothing runs: nothing could ever happen",
            )

    def _start(self, request: Request, match: Match) -> int:
        del self.waiting[request.id]
        self.running[request.id] = request
        request.status = Status.RUNNING
        if request.admitted_at is None:
            request.admitted_at = self.view.now
        self.memory.admit(request, match)
        self._decide("admit", request.id, match.n_tokens)
        return self._count_cached(request, 0, match.n_tokens)

    def _count_cached(self, request: Request, start: int, end: int) -> int:
        """Counts prompt tokens found in the cache that the request never computed itself."""
        n = max(0, min(end, request.prompt_tokens) - max(start, request.n_ever_computed))
        request.n_cached += n
        self.n_cached_in_pass += n
        request.n_ever_computed = max(request.n_ever_computed, end)
        return n

    def _still_needs(self, request: Request) -> int:
        """Tokens of new pages that a running request is expected to take yet."""
        held = request.n_pages + self.assembler.held_pages(request)
        return self.memory.whole_pages(self._wants(request)) - held * self.memory.page_size

    def _wants(self, request: Request) -> int:
        """Tokens that a request is expected to need room for at a time."""
        total = request.n_tokens + self.estimate.remaining(request)
        in_place = request.splices and request.n_computed >= request.splices[-1].end
        return total if in_place else max(total, request.peak_tokens)

    # ---- giving way

    def _preempt(self) -> bool:
        """Asks the policy who gives way, until the decodes of this step have their pages. True if somebody did."""
        if not self.running:
            return False
        before = self.preemptions
        need = self._missing()
        running, waiting = tuple(self.running.values()), tuple(self.waiting.values())
        for given in self.guard.ask_each("preempt", running, waiting, max(0, need), self.view):
            self._preempt_one(self._one_of(self.running, given, "preempt", "running"))
            if need > 0 and (need := self._missing()) <= 0:
                break
        while self._missing() > 0:  # the policy named too few
            self._preempt_one(next(reversed(self.running.values())))
        return self.preemptions > before

    def _missing(self) -> int:
        """Tokens that the decodes of this step lack."""
        page = self.memory.page_size
        wanted = sum(
            page
            for request in self.running.values()
            if request.n_tokens - request.n_computed == 1
            and request.n_tokens > request.n_pages * page
            and not request.awaits_end
        )
        return wanted - self.memory.available

    def put_back(self) -> None:
        """Every running request begins anew: the KV that it holds can't be trusted any more."""
        for request in reversed(tuple(self.running.values())):
            self._preempt_one(request, keep=False)
        self.assembler.forget()

    def _preempt_one(self, request: Request, *, keep: bool = True) -> None:
        """Back to the head of the queue; what it computed goes to the cache, so little of it is computed again."""
        self._decide("preempt", request.id, request.n_computed)
        self.memory.release(request, keep=keep, ended=False)
        del self.running[request.id]
        request.status = Status.WAITING
        request.preemptions += 1
        self.waiting = {request.id: request, **self.waiting}
        self.preemptions += 1
        self.estimate.on_preemption()

    def _one_of(self, requests: dict[int, Request], given: object, hook: str, state: str) -> Request:
        """What the policy yielded, if it's one of `requests`. Raises PolicyError."""
        if isinstance(given, Request) and requests.get(given.id) is given:
            return given
        named = f"request {given.id}" if isinstance(given, Request) else repr(given)
        raise broken(self.guard.policy, hook, f"yielded {named}, which isn't {state} (any more)")

    def _decide(self, kind: str, request: int, a: int = 0, b: int = 0, text: str = "") -> None:
        self.log.add(Event(self.step, self.view.now, "decision", kind, request, a, b, (), text))
