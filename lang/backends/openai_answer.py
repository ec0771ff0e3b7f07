"""OpenAI's answers as they come, in one piece or many."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lang.backends.api import Answer, AnswerError, Grow
from lang.backends.base import TokenLogprob
from lang.tools import ToolCall


@dataclass
class _Called:
    id: str = ""
    name: str = ""
    arguments: str = ""

    def whole(self) -> ToolCall:
        try:
            arguments = json.loads(self.arguments or "{}")
        except ValueError:
            arguments = None
        if not isinstance(arguments, dict):
            raise AnswerError(
                f"the call of tool {self.name!r} has arguments that are no JSON object: {self.arguments!r:.200}"
            )
        return ToolCall(self.id, self.name, arguments)


@dataclass
class _Sample:
    text: str = ""
    refusal: str = ""
    finish_reason: str | None = None
    calls: dict[int, _Called] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Samples:
    """The samples of one answer. Takes a whole answer as it takes a chunk of a stream."""

    def __init__(self, n: int, grow: Grow) -> None:
        self._samples = [_Sample() for _ in range(n)]
        self._grow = grow
        self._usage: Any = None

    def take(self, answer: Any) -> None:
        """A ChatCompletion, a ChatCompletionChunk or a Completion."""
        self._usage = getattr(answer, "usage", None) or self._usage
        for choice in answer.choices:
            sample = self._samples[choice.index]
            sample.finish_reason = choice.finish_reason or sample.finish_reason
            said = getattr(choice, "message", None) or getattr(choice, "delta", None)
            text = choice.text if said is None else said.content
            if text:
                sample.text += text
                if choice.index == 0:
                    self._grow(text)
            if said is not None:
                _take_message(sample, said)
            if choice.index == 0 and choice.logprobs is not None:
                sample.logprobs += _of_text(choice.logprobs) if said is None else _of_message(choice.logprobs)

    def answer(self) -> Answer:
        """Raises AnswerError when it broke off, or is a refusal."""
        for sample in self._samples:
            if sample.refusal:
                raise AnswerError(f"the model refused: {sample.refusal}")
            if sample.finish_reason is None:
                raise AnswerError(f"the answer broke off after {len(sample.text)} characters: no end was told")
        first = self._samples[0]
        reasons = [sample.finish_reason for sample in self._samples]
        return Answer(
            texts=tuple(sample.text for sample in self._samples),
            meta={**usage_meta(self._usage), "finish_reason": reasons[0] if len(reasons) == 1 else reasons},
            tool_calls=tuple(called.whole() for _, called in sorted(first.calls.items())),
            logprobs=first.logprobs or None,
        )


def usage_meta(usage: Any) -> dict[str, Any]:
    """None for what the server doesn't say."""
    details = getattr(usage, "prompt_tokens_details", None)
    return {
        "prompt_tokens": getattr(usage, "prompt_tokens", None),
        "cached_tokens": getattr(details, "cached_tokens", None),
        "completion_tokens": getattr(usage, "completion_tokens", None),
    }


def summed(usages: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of several requests. None for what one of them doesn't say."""
    return {
        name: None if any(usage[name] is None for usage in usages) else sum(usage[name] for usage in usages)
        for name in usages[0]
    }


def _of_message(found: Any) -> list[TokenLogprob]:
    return [
        TokenLogprob(
            entry.token,
            None,
            entry.logprob,
            tuple((likely.token, None, likely.logprob) for likely in entry.top_logprobs or ()),
        )
        for entry in found.content or ()
    ]


def _of_text(found: Any) -> list[TokenLogprob]:
    """Servers tell the token itself beside the likeliest: there may be one more than was asked for."""
    tops = found.top_logprobs or [None] * len(found.tokens)
    return [
        TokenLogprob(
            token,
            None,
            logprob,
            tuple((text, None, value) for text, value in sorted((top or {}).items(), key=lambda item: -item[1])),
        )
        for token, logprob, top in zip(found.tokens, found.token_logprobs, tops)
    ]


def _take_message(sample: _Sample, said: Any) -> None:
    sample.refusal += getattr(said, "refusal", None) or ""
    for i, called in enumerate(said.tool_calls or ()):
        index = getattr(called, "index", None)
        found = sample.calls.setdefault(i if index is None else index, _Called())
        found.id = called.id or found.id
        if called.function is not None:
            found.name = called.function.name or found.name
            found.arguments += called.function.arguments or ""
