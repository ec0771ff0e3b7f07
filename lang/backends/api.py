"""What backends over the network share: calls are tasks on one event-loop thread, and `step` tells how they went."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import queue
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Collection, Coroutine, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self

from lang.backends.base import Backend, Call, Tags, TokenLogprob
from lang.capabilities import Capabilities, features_of, features_of_select
from lang.choices import ChoicesMethod
from lang.prompt import PLAIN, ChatStyle, Prompt
from lang.sampling import Sampling
from lang.tools import ToolCall

STEP_S = 0.05
"""Seconds that a step waits for news."""


class Answer(NamedTuple):
    """What came of a call."""

    texts: tuple[str, ...]
    meta: dict[str, Any]
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: list[TokenLogprob] | None = None


class AnswerError(RuntimeError):
    """The server answered, but not what was asked for."""


class News:
    """What the calls' thread has to tell, and who wants to hear at once that there is something."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[tuple[Call, str | Answer | Exception]] = queue.SimpleQueue()
        self.tell: Callable[[], None] | None = None

    def put(self, call: Call, outcome: str | Answer | Exception) -> None:
        self.queue.put((call, outcome))
        if (tell := self.tell) is not None:
            tell()


Grow = Callable[[str], None]
"""Tells of more text of the first sample."""
Work = Callable[[Grow], Coroutine[Any, Any, Answer]]


class WallClock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._origin = time.perf_counter()

    def now(self) -> float:
        return time.perf_counter() - self._origin

    def sleep_until(self, when: float) -> None:
        while (left := when - self.now()) > 0:
            time.sleep(left)


class ApiBackend(Backend):
    """Backends say what to send and how to read the answer; here it is sent, awaited, given up.

    Calls fail with their `error`: `step` raises nothing. Whether a request is tried again is the client library's own
    policy. `close()` (or `with`) ends the thread; a backend that is forgotten ends it too.
    """

    speculates = True

    def __init__(self, capabilities: Capabilities, *, style: ChatStyle = PLAIN, concurrency: int = 128) -> None:
        """concurrency: requests under way at a time; the others wait here, where they cost no connection."""
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency} is not allowed: it must be 1 or more")
        self.capabilities = capabilities
        self.style = style
        self.clock = WallClock()
        self._slots = asyncio.Semaphore(concurrency)
        self._news = News()
        self._open: dict[Call, concurrent.futures.Future[None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    _model: str
    """What is asked for by name."""

    @property
    def identity(self) -> str:
        return f"{self.capabilities.backend}, {self._model}"

    @abstractmethod
    def _generation(self, prompt: Prompt, sampling: Sampling) -> Work:
        """Raises NotServed."""

    @abstractmethod
    def _selection(self, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod) -> Work:
        """Raises NotServed."""

    @abstractmethod
    async def _close_client(self) -> None: ...

    def generate(self, name: str | None, prompt: Prompt, sampling: Sampling, tags: Tags) -> Call:
        """Raises NotServed for what the API can't do; what it refuses itself is the call's error."""
        for feature, what in features_of(prompt, sampling):
            self.capabilities.need(feature, what)
        return self._start(name, prompt, tags, self._generation(prompt, sampling))

    def score(
        self, name: str | None, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod, tags: Tags
    ) -> Call:
        """Raises as `generate` does."""
        for feature, what in features_of_select(prompt):
            self.capabilities.need(feature, what)
        return self._start(name, prompt, tags, self._selection(prompt, choices, method))

    def step(self) -> list[Call]:
        """Takes the news: text that grew (`Call.partial`), or calls that ended, returned as they came.

        Waits a moment for some, unless somebody is told when there is any (`notify`).
        """
        if not self._open:
            return []
        try:
            news = [self._news.queue.get(block=self._news.tell is None, timeout=STEP_S)]
        except queue.Empty:
            return []
        news += [self._news.queue.get_nowait() for _ in range(self._news.queue.qsize())]
        return list(self._tell(news))

    def notify(self, tell: Callable[[], None] | None) -> bool:
        """Each time the calls' thread has news; at once if it had some before."""
        self._news.tell = tell
        if tell is not None and not self._news.queue.empty():
            tell()
        return True

    def abort(self, call: Call) -> None:
        task = self._open.pop(call, None)
        if task is not None:
            task.cancel()

    def commit(self, prompt: Prompt, tags: Tags) -> None:
        """Nothing: servers keep what they were sent, and a request only to that end would cost as much as it saves."""

    def close(self) -> None:
        """Calls under way fail; the backend takes no more."""
        if self._closed:
            return
        self._closed = True
        for call in self._open:
            self._news.put(call, AnswerError("the backend was closed"))
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(timeout=30)
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _start(self, name: str | None, prompt: Prompt, tags: Tags, work: Work) -> Call:
        if self._closed:
            raise RuntimeError("the backend was closed: it takes no more calls")
        call = Call(name=name, prompt=prompt.text(self.style), request=prompt, tags=tags)
        task = asyncio.run_coroutine_threadsafe(_run(self._slots, self._news, call, work), self._running_loop())
        self._open[call] = task
        return call

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        """Its thread starts with the first call."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_serve, args=(self._loop,), name="API calls", daemon=True).start()
            self._stop = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        return self._loop

    async def _shut(self) -> None:
        await _give_up([task for task in asyncio.all_tasks() if task is not asyncio.current_task()])
        await self._close_client()

    def _tell(self, news: Sequence[tuple[Call, str | Answer | Exception]]) -> Iterator[Call]:
        for call, outcome in news:
            if call not in self._open:  # given up
                continue
            if isinstance(outcome, str):
                call.partial += outcome
                continue
            del self._open[call]
            call.finished = True
            if isinstance(outcome, Answer):
                call.texts, call.meta = outcome.texts, outcome.meta
                call.tool_calls, call.logprobs = outcome.tool_calls, outcome.logprobs
                if call.tool_calls:
                    call.written = "\n".join([text for text in (call.text, *map(_written, call.tool_calls)) if text])
            else:
                call.error = _told(outcome)
            yield call


async def _run(
    slots: asyncio.Semaphore,
    news: News,
    call: Call,
    work: Work,
) -> None:
    """Holds no backend, so that one that is forgotten can go."""
    outcome: Answer | Exception
    try:
        async with slots:
            outcome = await work(lambda text: news.put(call, text))
    except Exception as error:
        outcome = error
    news.put(call, outcome)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
        loop.run_until_complete(_give_up(asyncio.all_tasks(loop)))
    finally:
        loop.close()


async def _give_up(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Returns once they have let go of their connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _written(called: ToolCall) -> str:
    """How a call of a tool stands in the prompts that go on: as many models write it themselves."""
    told = json.dumps({"name": called.name, "arguments": called.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{told}\n</tool_call>"


def _told(error: Exception) -> str:
    if isinstance(error, AnswerError):
        return str(error)
    return f"{type(error).__name__}: {error}".removesuffix(": ")
