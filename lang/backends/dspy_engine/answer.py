"""From the engine's news of one request to the events of DSPy's streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from engine.detokenizer import OutputText
from engine.request import TokenLogprob
from engine.server.engine_thread import End, News
from engine.server.token_logprobs import TokenTexts, finite
from engine.server.tool_calls import CallArguments, CallStart, Content, ToolCallParser
from lang.backends.dspy_engine.errors import failure
from lang.backends.dspy_engine.reading import Asked


class Answer:
    """One answer as it grows."""

    def __init__(
        self, id: str, model: str, asked: Asked, texts: TokenTexts, parser: ToolCallParser | None = None
    ) -> None:
        """parser: where tools may be called."""
        self._id, self._model, self._asked = id, model, asked
        self._texts = texts
        self._parser = parser
        self._text = OutputText(texts.tokenizer, asked.prompt.tolist(), asked.params.stop, asked.params.min_tokens)
        self._logprobs: list[lm15.TokenLogprob] = []
        """Of tokens whose text is held back."""
        self._part = -1
        """Number of the part that grows: a text, or a call."""
        self._in_text = False
        self.ended = False

    def start(self) -> lm15.StreamStartEvent:
        return lm15.StreamStartEvent(id=self._id, model=self._model, adaptations=self._asked.adaptations)

    def take(self, batch: Sequence[News[Any]]) -> Iterator[lm15.StreamEvent]:
        """What the news add; the end's is the last event. Raises a dspy.lm15 error when the request failed."""
        text = ""
        for news in batch:
            end = news.end
            if end is not None and (error := failure(end)) is not None:
                raise error
            ended_by_token = end is not None and isinstance(end.stop_match, int)
            for token in news.tokens[:-1] if ended_by_token else news.tokens:
                text += self._text.push(token)
            self._logprobs += [self._logprob(entry) for entry in news.logprobs]
            if end is not None:
                text += self._text.flush()
        yield from self._deltas(text, end)
        if end is not None:
            self.ended = True
            yield self._end(end)

    def _deltas(self, text: str, end: End | None) -> Iterator[lm15.StreamDeltaEvent]:
        if self._parser is None:
            if text:
                yield self._said(text)
        else:
            events = self._parser.push(text)
            if end is not None:
                events += self._parser.finish()
            for event in events:
                match event:
                    case Content(text=said):
                        yield self._said(said)
                    case CallStart(id=call_id, name=name):
                        self._part, self._in_text = self._part + 1, False
                        yield self._called("", id=call_id, name=name)
                    case CallArguments(text=piece):
                        yield self._called(piece)
        if end is not None and self._logprobs:
            yield self._said("")  # of an end token, or of calls

    def _said(self, text: str) -> lm15.StreamDeltaEvent:
        if not self._in_text:
            self._part, self._in_text = self._part + 1, True
        logprobs, self._logprobs = tuple(self._logprobs), []
        return lm15.StreamDeltaEvent(lm15.TextDelta(text, part_index=self._part, logprobs=logprobs))

    def _called(self, arguments: str, **identity: str) -> lm15.StreamDeltaEvent:
        return lm15.StreamDeltaEvent(lm15.ToolCallDelta(arguments, part_index=self._part, **identity))

    def _end(self, end: End) -> lm15.StreamEndEvent:
        reason = end.reason.value
        if reason == "stop" and self._parser is not None and self._parser.n_calls:
            reason = "tool_call"
        usage = lm15.Usage(
            input_tokens=end.prompt_tokens, output_tokens=end.output_tokens, cache_read_tokens=end.cached_tokens
        )
        told = {"stop_match": end.stop_match, "forced_tokens": end.forced_tokens}
        return lm15.StreamEndEvent(finish_reason=reason, usage=usage, provider_data=told)

    def _logprob(self, entry: TokenLogprob) -> lm15.TokenLogprob:
        return lm15.TokenLogprob(
            **self._scored(entry.token, entry.logprob),
            top=tuple(lm15.TopLogprob(**self._scored(token, logprob)) for token, logprob in entry.top),
        )

    def _scored(self, token: int, logprob: float) -> dict[str, Any]:
        exact = tuple(self._texts.tokenizer.token_bytes(token))
        return {
            "token": self._texts.text(token),
            "logprob": float(finite(logprob)),
            "bytes": exact,
            "token_id": int(token),
        }
