"""One engine behind its thread, as the endpoints see it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

from engine.engine import Engine
from engine.request import RequestError, SamplingParams, Tokens
from engine.server.config import ServerConfig
from engine.server.engine_thread import EngineDead, EngineThread, Report
from engine.server.errors import ApiError
from engine.server.stream import Sample, Stream
from engine.tokenizer import Tokenizer

T = TypeVar("T")

LONG_TEXT = 2_000
"""Characters; a shorter text is tokenised at once, a longer one in a thread: some 5 ms a megabyte would be noticed."""


def _no_connection() -> None:
    pass


cut_connection: ContextVar[Any] = ContextVar("cut_connection", default=_no_connection)
"""Closes the connection of the request that is being answered, whatever it still has to send."""


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
        self.draining = False
        """New requests are refused."""
        self.dead = asyncio.Event()
        """The engine's thread died."""
        self._pool = ThreadPoolExecutor(config.tokenizer_threads, thread_name_prefix="tokenizer")
        self._streams: set[Stream] = set()
        self._running = 0

    # ---- life

    def start(self) -> None:
        """To be called on the event loop that all else happens on."""
        self._loop = asyncio.get_running_loop()
        self.thread.start()

    async def stop(self) -> None:
        """Ends what is under way, and the thread."""
        self.thread.stop()
        await asyncio.to_thread(self.thread.join)
        self._pool.shutdown(wait=False)

    @property
    def ready(self) -> bool:
        return self.thread.alive and not self.draining

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
        client: str = "",
        namespace: str = "",
        priority: int = 0,
        timeout: float | None = None,
        **tags: Any,
    ) -> Stream:
        due = self.engine.clock.now()
        limit = self.config.timeout_s if timeout is None else min(timeout, self.config.timeout_s)
        try:
            key: Tokens = await self._aside(len(prompt) > LONG_TEXT, self.engine.intake.check, prompt, params)
            stream = Stream(
                key.tolist(),
                params,
                self.tokenizer,
                buffer=self.config.stream_buffer,
                abort=self._abort,
                cut=cut_connection.get(),
            )
            adding = self.thread.add(
                stream.samples,
                key,
                params,
                due=due,
                deadline=due + limit,
                client=client,
                namespace=namespace,
                priority=priority,
                **tags,
            )
            self._streams.add(stream)
            try:
                await asyncio.wrap_future(adding)
            except BaseException:
                self._streams.discard(stream)
                self._abort(stream)  # the caller gave up, or nothing was queued
                raise
        except RequestError as error:
            raise ApiError(400, str(error)) from None
        except EngineDead as error:
            raise ApiError(503, str(error), code="engine_dead", retry_after=1) from None
        return stream

    async def _aside(self, long: bool, call: Any, *args: Any, **kwargs: Any) -> Any:
        """The call's result, from a thread where it may take long."""
        if not long:
            return call(*args, **kwargs)
        return await asyncio.wrap_future(self._pool.submit(call, *args, **kwargs))

    # ---- what the engine's thread says

    def _deliver(self, report: Report[Sample]) -> None:
        self._loop.call_soon_threadsafe(self._take, report)

    def _died(self, error: BaseException) -> None:
        self._loop.call_soon_threadsafe(self._fail_all)

    def _take(self, report: Report[Sample]) -> None:
        self._running = report.running
        for news in report.news:
            stream = news.sample.stream
            stream.take(news)
            if stream.over:
                self._streams.discard(stream)

    def _fail_all(self) -> None:
        for stream in tuple(self._streams):
            stream.fail(ApiError(500, "the engine has died; the server is going down", code="engine_dead"))
        self._streams.clear()
        self.dead.set()

    def _abort(self, stream: Stream) -> None:
        for sample in stream.samples:
            if not sample.ended:
                self.thread.abort(sample)
