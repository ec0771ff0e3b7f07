"""The calls under way: from any thread to the engine's, and back to whoever waits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from engine.engine import Engine
from engine.server.engine_thread import EngineDead, EngineThread, News, Report
from lang.backends.dspy_engine.reading import Asked

log = logging.getLogger("radixlab.dspy")

Batch = list[News["Call"]]


@dataclass(eq=False, slots=True)
class Call:
    """One request under way. `put` is called on the engine's thread, which it must not hold up."""

    put: Callable[[Batch | EngineDead], None]
    streams: bool
    """Its caller is woken after each step that concerns it; else once, at its end."""
    held: Batch = field(default_factory=list)
    ended: bool = False

    def take(self, news: News[Call]) -> None:
        self.held.append(news)
        self.ended = news.end is not None
        if self.streams or self.ended:
            batch, self.held = self.held, []
            self.put(batch)


class Calls:
    """Starts the thread that owns the engine. All methods may be called from any thread."""

    def __init__(self, engine: Engine, timeout: float | None) -> None:
        """timeout: seconds after which a call is given up."""
        self._engine = engine
        self._timeout = timeout
        self._open: set[Call] = set()
        self._changing = threading.Lock()  # of the set above
        self._makes_text = engine.outputs.makes_text
        engine.outputs.makes_text = False  # the callers' own threads do
        before = list(engine.on_finish)
        self._thread: EngineThread[Call] = EngineThread(engine, deliver=self._deliver, died=self._died)
        self._listeners = engine.on_finish[len(before) :]
        """The thread's own, which it leaves behind."""
        self._thread.start()

    def queue(self, call: Call, asked: Asked) -> Future[None]:
        """The future raises RequestError or EngineDead."""
        due = self._engine.clock.now()
        deadline = None if self._timeout is None else due + self._timeout
        with self._changing:
            self._open.add(call)
        return self._thread.add([call], asked.prompt, asked.params, due=due, deadline=deadline, **asked.tags)

    def leave(self, call: Call) -> None:
        """Its caller is gone: what is left of the request is ended."""
        with self._changing:
            self._open.discard(call)
        if not call.ended:
            self._thread.abort(call)

    def close(self) -> None:
        """Ends the calls and the thread; the engine is as it was. Any number of times."""
        self._thread.stop()
        self._thread.join()
        if self._listeners:
            self._engine.outputs.makes_text = self._makes_text
        for listener in self._listeners:
            self._engine.on_finish.remove(listener)
        self._listeners = []

    def _deliver(self, report: Report[Call]) -> None:
        for news in report.news:
            try:
                news.sample.take(news)
            except Exception:  # the others must get their news all the same
                log.exception("a caller can't be told")

    def _died(self, error: BaseException) -> None:
        with self._changing:
            calls = tuple(self._open)
        for call in calls:
            call.put(EngineDead(f"the engine has died of {error!r}"))
