"""A prompt's samples under way, on the event loop: news from the engine becomes text, and waits to be read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from engine.detokenizer import OutputText
from engine.request import Fault, FinishReason, SamplingParams, TokenLogprob
from engine.server.engine_thread import End, News
from engine.server.errors import ApiError
from engine.server.generation import Delta, Finish
from engine.tokenizer import Tokenizer


@dataclass(eq=False, slots=True)
class Sample:
    """One of the n outputs of a prompt."""

    stream: Stream
    index: int
    text: OutputText
    ended: bool = False


@dataclass(slots=True)
class _Unread:
    """What a sample gained since its reader last looked."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None


class Stream:
    """Implements `generation.Generation`. All of it on the event loop.

    What a reader hasn't taken yet is kept, a delta a sample however many steps it took, up to `buffer` tokens; a
    reader further behind is cut off: `cut` closes its connection and `abort` ends its samples.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
        *,
        buffer: int,
        abort: Callable[[Stream], None],
        cut: Callable[[], None],
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.samples = [
            Sample(self, i, OutputText(tokenizer, prompt, params.stop, params.min_tokens)) for i in range(params.n)
        ]
        self._cancelled = False
        self._was_cut = False
        self._buffer = buffer
        self._abort, self._cut = abort, cut
        self._loop = asyncio.get_running_loop()
        self._unread: dict[int, _Unread] = {}
        self._n_unread = 0
        self._error: ApiError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._prompt_logprobs: Sequence[TokenLogprob] = ()

    @property
    def prompt_logprobs(self) -> Sequence[TokenLogprob]:
        return self._prompt_logprobs

    @property
    def over(self) -> bool:
        """No sample is under way."""
        return all(sample.ended for sample in self.samples)

    # ---- the reader's side

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while True:
            while self._unread and self._error is None:
                index = next(iter(self._unread))
                unread = self._unread.pop(index)
                self._n_unread -= len(unread.tokens)
                yield Delta(index, unread.text, tuple(unread.tokens), tuple(unread.logprobs), unread.finish)
            if self._error is not None:
                raise self._error
            if self.over:
                return
            self._reader = self._loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None

    def cancel(self) -> None:
        if not self.over:
            self._cancelled = True
            self._abort(self)

    # ---- the engine's side

    def fail(self, error: ApiError) -> None:
        """The reader gets the error instead of anything that comes; what is under way is ended."""
        if self._error is None:
            self._error = error
            self._unread.clear()
            if not self.over:
                self._abort(self)
            self._wake()

    def take(self, news: News[Sample]) -> None:
        sample, end = news.sample, news.end
        sample.ended = sample.ended or end is not None
        if self._error is not None:
            return
        self._prompt_logprobs = self._prompt_logprobs or news.prompt_logprobs
        if end is not None and end.reason in (FinishReason.ABORT, FinishReason.ERROR):
            self.fail(_failure(end))
            return
        unread = self._unread.setdefault(sample.index, _Unread())
        unread.tokens += news.tokens
        unread.logprobs += news.logprobs
        ends_by_token = end is not None and isinstance(end.stop_match, int)
        for token in news.tokens[:-1] if ends_by_token else news.tokens:
            unread.text += sample.text.push(token)
        if end is not None:
            unread.text += sample.text.flush()
            unread.finish = Finish(
                end.reason.value, end.stop_match, end.output_tokens, end.cached_tokens, end.forced_tokens
            )
        self._n_unread += len(news.tokens)
        if self._n_unread > self._buffer:
            self._loop.call_soon(self._check_reader)  # when it has had its turn
        self._wake()

    def outcome(self, end: End) -> str:
        """One word for how a sample ended."""
        match end.reason:
            case FinishReason.ERROR:
                return "refused" if end.fault in (Fault.CALLER, Fault.LOAD) else "failed"
            case FinishReason.ABORT if end.late:
                return "late"
            case FinishReason.ABORT if self._was_cut:
                return "cut"
            case FinishReason.ABORT:
                return "cancelled" if self._cancelled else "stopped"
        return end.reason.value

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _check_reader(self) -> None:
        if self._n_unread > self._buffer and self._error is None:
            self._was_cut = True
            self.fail(ApiError(500, f"the reader is more than {self._buffer} tokens behind: cut off", code="too_slow"))
            self._cut()


def _failure(end: End) -> ApiError:
    if end.late:
        where = "before it ran" if end.admitted_at is None else f"after {end.output_tokens} output tokens"
        seconds = end.finished_at - end.arrival
        return ApiError(504, f"the request's time was up {where}, after {seconds:.1f} s", code="deadline_exceeded")
    if end.fault is Fault.CALLER:
        return ApiError(400, str(end.error), code="invalid_value")
    if end.fault is Fault.LOAD:
        return ApiError(429, f"refused by the admission policy: {end.error}", code="refused", retry_after=1)
    if end.reason is FinishReason.ERROR:
        return ApiError(500, "the model's step with this request failed; the server's log says why", code="step_failed")
    return ApiError(503, "the server is stopping and has ended the request", code="stopping", retry_after=1)
