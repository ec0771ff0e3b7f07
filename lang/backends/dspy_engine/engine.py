"""One engine as DSPy's threads and coroutines see it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import queue
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from engine.engine import Engine
from engine.request import RequestError
from engine.server.config import ServerConfig
from engine.server.conversation import Chat
from engine.server.engine_thread import EngineDead
from engine.server.token_logprobs import TokenTexts
from lang.backends.dspy_engine.answer import Answer
from lang.backends.dspy_engine.calls import Batch, Call, Calls
from lang.backends.dspy_engine.errors import as_lm15, stopped
from lang.backends.dspy_engine.reading import SUPPORTED_PARAMS, Asked, RequestReader


class DSPyEngine:
    """Implements `dspy.clients.engines.base.Engine`. Calls may come from any number of threads: they are one batch.

    From here to `close` the engine belongs to a thread that this starts; nobody else may add to it or step it. Keeping
    answers, retries and several candidates are DSPy's own (a candidate is a request; they share their prompt's KV).
    """

    supports_function_calling = True
    supports_response_schema = True
    supports_reasoning = False
    supported_params = SUPPORTED_PARAMS

    def __init__(
        self,
        engine: Engine,
        *,
        model_name: str | None = None,
        chat_template: Path | None = None,
        tool_format: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """model_name: what stands behind the `/` of `dspy.LM("radixlab/NAME")`; None: the configuration's model, of a
            folder its name.
        chat_template: a file; None: the tokenizer's own, else a plain one.
        tool_format: hermes, llama3_json or mistral; None: the one that the template shows.
        timeout: seconds after which a call is given up.

        Raises RequestError for an engine without a tokenizer, a tool format that isn't known, a timeout of no time;
        engine.chat_template.TemplateError.
        """
        if engine.tokenizer is None:
            raise RequestError("DSPy's messages are text and this engine has no tokenizer: make it with one")
        if timeout is not None and not timeout > 0:
            raise RequestError(f"timeout={timeout!r} is not allowed: it must be above 0 seconds, or None")
        chat = Chat.of(engine.tokenizer, ServerConfig(chat_template=chat_template, tool_format=tool_format))
        self._chat = chat
        self._reader = RequestReader(engine, chat, model_name)
        self._texts = TokenTexts(engine.tokenizer)
        self._numbers = itertools.count()
        self._calls = Calls(engine, timeout)
        self._closed = False
        self.asynchronous = AsyncDSPyEngine(self)
        """For `dspy.LM(async_engine=...)`: the same engine, and calls of both kinds are one batch."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The whole answer. Raises dspy.lm15 errors."""
        return lm15.materialize_response(self._events(request, streams=False), request)

    def stream(self, request: lm15.Request) -> Iterator[lm15.StreamEvent]:
        """The answer as it grows. Leaving it early ends the request. Raises dspy.lm15 errors."""
        return self._events(request, streams=True)

    def close(self) -> None:
        """Ends what is under way and gives the engine back. Any number of times."""
        self._closed = True
        self._calls.close()

    def __enter__(self) -> DSPyEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __deepcopy__(self, memo: dict[int, Any]) -> DSPyEngine:
        """Copies of a program share the engine, as they would share a server."""
        return self

    def _events(self, request: lm15.Request, *, streams: bool) -> Iterator[lm15.StreamEvent]:
        asked = self._read(request)
        inbox: queue.SimpleQueue[Batch | EngineDead] = queue.SimpleQueue()
        call = Call(inbox.put, streams)
        try:
            with as_lm15():
                self._calls.queue(call, asked).result()
            answer = self._open(request, asked)
            yield answer.start()
            while not answer.ended:
                yield from answer.take(_unless_dead(inbox.get()))
        finally:
            self._calls.leave(call)

    def _read(self, request: lm15.Request) -> Asked:
        """All that can be done before the engine's thread is asked."""
        if self._closed:
            raise stopped("this DSPyEngine is closed")
        with as_lm15():
            return self._reader.read(request)

    def _open(self, request: lm15.Request, asked: Asked) -> Answer:
        parser = self._chat.parser() if asked.calls_tools else None
        return Answer(f"radixlab-{next(self._numbers)}", request.model, asked, self._texts, parser)


class AsyncDSPyEngine:
    """Implements `dspy.clients.engines.base.AsyncEngine`: `DSPyEngine.asynchronous`. No thread waits for a call."""

    supports_function_calling = DSPyEngine.supports_function_calling
    supports_response_schema = DSPyEngine.supports_response_schema
    supports_reasoning = DSPyEngine.supports_reasoning
    supported_params = DSPyEngine.supported_params

    def __init__(self, engine: DSPyEngine) -> None:
        self._engine = engine

    async def complete(self, request: lm15.Request) -> lm15.Response:
        """The whole answer. Cancelling it ends the request. Raises dspy.lm15 errors."""
        return await lm15.amaterialize_response(self._events(request, streams=False), request)

    def stream(self, request: lm15.Request) -> AsyncIterator[lm15.StreamEvent]:
        """The answer as it grows. Leaving it early ends the request. Raises dspy.lm15 errors."""
        return self._events(request, streams=True)

    async def aclose(self) -> None:
        """Closes the `DSPyEngine`."""
        await asyncio.to_thread(self._engine.close)

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncDSPyEngine:
        return self

    async def _events(self, request: lm15.Request, *, streams: bool) -> AsyncIterator[lm15.StreamEvent]:
        engine, loop = self._engine, asyncio.get_running_loop()
        asked = await asyncio.to_thread(engine._read, request)
        inbox: asyncio.Queue[Batch | EngineDead] = asyncio.Queue()

        def put(item: Batch | EngineDead) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(inbox.put_nowait, item)

        call = Call(put, streams)
        try:
            with as_lm15():
                await asyncio.wrap_future(engine._calls.queue(call, asked))
            answer = engine._open(request, asked)
            yield answer.start()
            while not answer.ended:
                for event in answer.take(_unless_dead(await inbox.get())):
                    yield event
        finally:
            engine._calls.leave(call)


def _unless_dead(item: Batch | EngineDead) -> Batch:
    with as_lm15():
        if isinstance(item, EngineDead):
            raise item
    return item
