"""The thread that owns the engine: the only one that adds, steps and aborts.

Others leave commands in its inbox and go on. After each step, what the live requests gained goes to the event loop in
one call, so a client that reads slowly, or not at all, costs the engine nothing.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import queue
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from engine.engine import Engine
from engine.intake import Prompt
from engine.request import Fault, FinishReason, Request, RequestError, SamplingParams, TokenLogprob

log = logging.getLogger("radixlab.server")

T = TypeVar("T")
S = TypeVar("S", bound=Hashable)


class EngineDead(RuntimeError):
    """The engine's thread has ended; nothing more can be asked of it."""


class End(NamedTuple):
    """How a request ended. Seconds are the engine's clock's."""

    reason: FinishReason
    stop_match: str | int | None
    error: str | None
    fault: Fault | None
    late: bool
    """Its deadline had come."""
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    forced_tokens: int
    arrival: float
    admitted_at: float | None
    first_token_at: float | None
    last_token_at: float | None
    finished_at: float


class News(NamedTuple, Generic[S]):
    """What one request gained since the last report."""

    sample: S
    """What the request was added under."""
    tokens: Sequence[int]
    logprobs: Sequence[TokenLogprob]
    prompt_logprobs: Sequence[TokenLogprob]
    """All of them, with the first news of a request; later empty."""
    end: End | None


class Report(NamedTuple, Generic[S]):
    news: list[News[S]]
    running: int


class _Command(NamedTuple):
    run: Callable[[], None]
    refuse: Callable[[], None]
    """Instead of `run`, when the engine has stopped."""


@dataclass(slots=True)
class _Live(Generic[S]):
    request: Request
    sample: S
    late: bool = False
    n_sent: int = 0
    told: bool = False
    """It has been in a report."""


@dataclass(order=True, slots=True)
class _Deadline:
    when: float
    request: int = field(compare=False)


class EngineThread(Generic[S]):
    """`deliver` and `died` are called on this thread; they must hand over and return."""

    def __init__(
        self,
        engine: Engine,
        *,
        deliver: Callable[[Report[S]], None],
        died: Callable[[BaseException], None],
    ) -> None:
        self.engine = engine
        self.error: BaseException | None = None
        """What killed it."""
        self._deliver, self._died = deliver, died
        self._inbox: queue.SimpleQueue[_Command] = queue.SimpleQueue()
        self._live: dict[int, _Live[S]] = {}
        self._by_sample: dict[S, _Live[S]] = {}
        self._deadlines: list[_Deadline] = []
        self._ended: list[Request] = []
        self._stopping = False
        self._told_running = 0
        self._closed = threading.Lock()  # held to close the inbox, or to put something in
        self._open = True
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        engine.on_finish.append(self._ended.append)

    # ---- from any thread

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._open and self._thread.is_alive()

    def stop(self) -> None:
        """Aborts what is live and ends the thread. Any number of times."""

        def run() -> None:
            self._stopping = True

        self._post(_Command(run, _nothing))

    def join(self, timeout: float | None = None) -> None:
        self._thread.join(timeout)

    def call(self, ask: Callable[[], T]) -> Future[T]:
        """Runs `ask` on the thread between two steps. The future raises what `ask` raises, or EngineDead."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(ask())
                except Exception as error:
                    future.set_exception(error)

        self._post(_Command(run, lambda: _refuse(future)))
        return future

    def add(
        self,
        samples: Sequence[S],
        prompt: Prompt,
        params: SamplingParams,
        *,
        due: float,
        deadline: float | None,
        **tags: Any,
    ) -> Future[None]:
        """Queues a prompt; its `params.n` requests report as `samples`. The future raises RequestError or EngineDead.

        `due`, `deadline`: seconds on the engine's clock. From the deadline on it is dropped where it stands.
        """
        future: Future[None] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():  # its client is gone
                return
            try:
                requests = self.engine.add(prompt, params, due=due, deadline=deadline, **tags)
            except RequestError as error:
                future.set_exception(error)
                return
            except BaseException:
                future.set_exception(EngineDead("the engine has stopped"))
                raise
            for request, sample in zip(requests, samples, strict=True):
                live = self._live[request.id] = self._by_sample[sample] = _Live(request, sample)
                if deadline is not None:
                    heapq.heappush(self._deadlines, _Deadline(deadline, live.request.id))
            future.set_result(None)

        self._post(_Command(run, lambda: _refuse(future)))
        return future

    def abort(self, sample: S) -> None:
        """Ends the request of that sample before the next step; no effect when it has ended."""

        def run() -> None:
            live = self._by_sample.get(sample)
            if live is not None:
                self.engine.abort(live.request)

        self._post(_Command(run, _nothing))

    def _post(self, command: _Command) -> None:
        with self._closed:
            if self._open:
                self._inbox.put(command)
                return
        command.refuse()

    # ---- on the thread

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._obey()
                self._drop_late()
                started = dict(self.engine.scheduler.running)
                if self.engine.has_work and self._rest() <= 0 and not self._stopping:
                    self.engine.step()
                self._report(started)
            for live in tuple(self._live.values()):
                self.engine.abort(live.request)
            self._report({})
        except BaseException as error:
            self.error = error
            log.critical("the engine's thread died", exc_info=error)
        self._close()
        if self.error is not None:
            self._died(self.error)

    def _obey(self) -> None:
        """Runs the commands that are there; waits for one while there is nothing else to do."""
        if not self.engine.has_work:
            self._inbox.get().run()
        elif (rest := self._rest()) > 0:
            with contextlib.suppress(queue.Empty):
                self._inbox.get(timeout=rest).run()
        for _ in range(self._inbox.qsize()):
            self._inbox.get().run()

    def _rest(self) -> float:
        """Seconds in which there is nothing to do but to listen: the admission policy has put all that waits off."""
        until = self.engine.idle_until
        if until is None:
            return 0.0
        if self._deadlines:
            until = min(until, self._deadlines[0].when)
        return until - self.engine.clock.now()

    def _drop_late(self) -> None:
        if not self._deadlines:
            return
        now = self.engine.clock.now()
        while self._deadlines and self._deadlines[0].when <= now:
            live = self._live.get(heapq.heappop(self._deadlines).request)
            if live is not None and not live.request.finished:
                live.late = True
                self.engine.abort(live.request)
        if len(self._deadlines) > 64 + 2 * len(self._live):
            self._deadlines = [deadline for deadline in self._deadlines if deadline.request in self._live]
            heapq.heapify(self._deadlines)

    def _report(self, started: dict[int, Request]) -> None:
        """Hands over what is new. Only what ran before or runs now can have gained anything, or has ended."""
        scheduler = self.engine.scheduler
        changed = started | scheduler.running | {request.id: request for request in self._ended}
        self._ended.clear()
        news = [one for id in changed if (live := self._live.get(id)) is not None and (one := self._news(live))]
        running = len(scheduler.running)
        if news or running != self._told_running:
            self._told_running = running
            self._deliver(Report(news, running))

    def _news(self, live: _Live[S]) -> News[S] | None:
        request = live.request
        if not request.token_times and not request.finished:  # what a grammar forces at the start isn't computed yet
            return None
        first = request.prompt_tokens + live.n_sent
        last = request.n_tokens - request.n_pending
        if request.params.logprobs is not None:  # those of forced tokens come a step later
            last = min(last, request.prompt_tokens + len(request.logprobs))
        if last <= first and not request.finished:
            return None
        tokens = request.tokens[first:last].tolist()
        logprobs = request.logprobs[live.n_sent : live.n_sent + len(tokens)]
        prompt_logprobs = () if live.told else tuple(request.prompt_logprobs)
        live.n_sent += len(tokens)
        live.told = True
        if request.finished:
            del self._live[request.id], self._by_sample[live.sample]
        return News(live.sample, tokens, logprobs, prompt_logprobs, _end(live) if request.finished else None)

    def _close(self) -> None:
        """Takes nothing more, and refuses what is left in the inbox."""
        with self._closed:
            self._open = False
        while not self._inbox.empty():
            self._inbox.get().refuse()


def _nothing() -> None:
    pass


def _refuse(future: Future[Any]) -> None:
    if future.set_running_or_notify_cancel():
        future.set_exception(EngineDead("the engine has stopped"))


def _end(live: _Live[Any]) -> End:
    request = live.request
    assert request.finish_reason is not None
    assert request.finished_at is not None
    return End(
        reason=request.finish_reason,
        stop_match=request.stop_match,
        error=request.error,
        fault=request.fault,
        late=live.late,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        cached_tokens=request.n_cached,
        forced_tokens=0 if request.constraint is None else request.constraint.forced_tokens,
        arrival=request.arrival,
        admitted_at=request.admitted_at,
        first_token_at=request.token_times[0] if request.token_times else None,
        last_token_at=request.token_times[-1] if request.token_times else None,
        finished_at=request.finished_at,
    )
