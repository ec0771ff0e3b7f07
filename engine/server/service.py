"""One engine behind its thread, as the endpoints see it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import Any, NoReturn

from engine.constraints import GrammarError
from engine.engine import Engine
from engine.intake import Prompt
from engine.request import AdmissionRefused, RequestError, SamplingParams, TooLong
from engine.server.config import ServerConfig
from engine.server.engine_thread import EngineDead, EngineThread, Report
from engine.server.errors import ApiError, unexpected
from engine.server.metrics import ServerMetrics
from engine.server.stream import Sample, Stream
from engine.tokenizer import Tokenizer

log = logging.getLogger("radixlab.server")

LONG_TEXT = 4096
"""Characters. A longer text is tokenised in a thread, so that no other client has to wait for it."""
_LONGEST_WAIT = 60.0
"""Seconds that a client is told to stay away at most."""


class Asker:
    """Whose request is being answered. Set for each HTTP request, by what stands before the endpoints."""

    client: ContextVar[str] = ContextVar("client", default="")
    """The name of its API key; empty where none is needed."""
    cut: ContextVar[Callable[[], None]] = ContextVar("cut", default=lambda: None)
    """Closes its connection, whatever is still to be sent."""


def own_namespaces() -> str:
    """What the namespaces of an isolated client begin with; no other client's do."""
    return f"{Asker.client.get()}/"


class EngineService:
    """Implements `generation.Service`. Lives on the event loop that `start` is called on."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        assert engine.tokenizer is not None
        self.engine = engine
        self.config = config
        self.tokenizer: Tokenizer = engine.tokenizer
        self.max_context: int = engine.executor.max_context
        self.vocab_size: int = engine.executor.vocab_size
        self.thread: EngineThread[Sample] = EngineThread(engine, deliver=self._deliver, died=self._died)
        self.metrics = ServerMetrics(self)
        self.draining = False
        """New requests are refused."""
        self.running = 0
        self.died = asyncio.Event()
        """The engine's thread is dead."""
        self._pool = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="tokenizer")
        self._streams: set[Stream] = set()
        self.n_open = 0
        """Samples that were accepted and haven't ended."""
        self._recent_ends: deque[float] = deque(maxlen=64)
        engine.outputs.makes_text = False  # streams do

    # ---- life

    def start(self) -> None:
        """To be called on the event loop that all else happens on."""
        self._loop = asyncio.get_running_loop()
        self.thread.start()

    async def stop(self) -> None:
        """Ends what is under way, and the thread."""
        self.draining = True
        self.thread.stop()
        await asyncio.to_thread(self.thread.join)
        await asyncio.sleep(0)  # its last report comes in
        self._pool.shutdown(wait=False)

    @property
    def ready(self) -> bool:
        return self.thread.alive and not self.draining

    @property
    def waiting(self) -> int:
        """Samples that wait for their first step, those included whose prompt is being read."""
        return max(0, self.n_open - self.running)

    # ---- what endpoints ask

    async def tokenize(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        try:
            return await self._aside(
                len(text) > LONG_TEXT, self.tokenizer.encode, text, add_special_tokens=add_special_tokens
            )
        except RequestError as error:
            raise ApiError(400, str(error)) from None

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        images: Sequence[Any] = (),
        client: str = "",
        namespace: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **tags: Any,
    ) -> Stream:
        try:
            self._check_load(params.n)
            self._count(params.n)
            try:
                return await self._queue(prompt, params, images, client, namespace, timeout, priority=priority, **tags)
            except BaseException:
                self._count(-params.n)
                raise
        except (RequestError, EngineDead, ApiError) as error:
            self._refuse(error)

    async def _queue(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        images: Sequence[Any],
        client: str,
        namespace: str,
        timeout: float | None,
        **tags: Any,
    ) -> Stream:
        due = self.engine.clock.now()
        deadline = due + (self.config.timeout_s if timeout is None else min(timeout, self.config.timeout_s))
        client = Asker.client.get() or client
        if self.config.isolate_clients:
            namespace = own_namespaces() + namespace
        key, placed = await self._aside(
            bool(images) or len(prompt) > LONG_TEXT, self.engine.intake.check_with_images, prompt, params, images
        )
        asked: Prompt = prompt if placed else key
        if placed:  # what was read here needn't be read again by the engine's thread
            tags["images"] = [one.picture for one in placed]
        if params.grammar is not None:
            await self._aside(True, self.engine.constraints.compile, params.grammar)
        stream = Stream(
            key.tolist(),
            params,
            self.tokenizer,
            buffer=self.config.stream_buffer,
            abort=self._abort,
            cut=partial(self._cut, Asker.cut.get()),
        )
        tags |= {"client": client, "namespace": namespace}
        adding = self.thread.add(stream.samples, asked, params, due=due, deadline=deadline, **tags)
        self._streams.add(stream)
        try:
            await asyncio.wrap_future(adding)
        except BaseException:
            self._streams.discard(stream)
            stream.cancel()  # nothing was queued, or the caller gave up
            raise
        return stream

    async def _aside(self, long: bool, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The call's result, from a thread where it may take long."""
        if not long:
            return call(*args, **kwargs)
        return await asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))

    # ---- load

    def _check_load(self, n: int) -> None:
        if self.draining:
            raise ApiError(503, "the server is stopping", code="stopping", retry_after=self.config.grace_s)
        if self.waiting and self.waiting + n > self.config.max_waiting:
            told = f"{self.waiting} requests are waiting and {self.config.max_waiting} may: come back later"
            raise ApiError(429, told, code="overloaded", retry_after=self._wait())

    def _wait(self) -> float:
        """Seconds in which as many requests end as wait now, at the recent rate."""
        ends, now = self._recent_ends, self.engine.clock.now()
        if not ends:
            return 1.0
        return min(_LONGEST_WAIT, max(1.0, self.waiting * (now - ends[0]) / len(ends)))

    def _count(self, n: int) -> None:
        if self.died.is_set():
            return
        self.n_open += n

    def _refuse(self, error: Exception) -> NoReturn:
        match error:
            case ApiError():
                told = error
            case AdmissionRefused():
                told = ApiError(429, str(error), code="refused", retry_after=self._wait())
            case TooLong():
                told = ApiError(400, str(error), code="context_length_exceeded")
            case GrammarError():
                told = ApiError(400, str(error), code="invalid_grammar")
            case RequestError():
                told = ApiError(400, str(error), code="invalid_value")
            case _:
                told = ApiError(503, "the engine has stopped", code="engine_dead", retry_after=_LONGEST_WAIT)
        self.metrics.refused.labels(told.status).inc()
        raise told from None

    # ---- what the engine's thread says

    def _deliver(self, report: Report[Sample]) -> None:
        self._loop.call_soon_threadsafe(self._take, report)

    def _died(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail_all)

    def _take(self, report: Report[Sample]) -> None:
        self.running = report.running
        for news in report.news:
            stream, end = news.sample.stream, news.end
            try:
                stream.take(news)
            except Exception:  # the others must get their news all the same
                log.exception("a stream can't be read")
                stream.fail(unexpected())
            if end is not None:
                self.metrics.ended(end, stream.outcome(end))
                self._recent_ends.append(end.finished_at)
                if stream in self._streams:
                    self._count(-1)
                if stream.over:
                    self._streams.discard(stream)

    def _fail_all(self) -> None:
        for stream in tuple(self._streams):
            stream.fail(ApiError(500, "the engine has died; the server is going down", code="engine_dead"))
        self._streams.clear()
        self.n_open = self.running = 0
        self.died.set()

    def _cut(self, connection: Callable[[], None]) -> None:
        self.metrics.cut.inc()
        connection()

    def _abort(self, stream: Stream) -> None:
        for sample in stream.samples:
            if not sample.ended:
                self.thread.abort(sample)
