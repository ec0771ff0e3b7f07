"""Gemini's answers as they come, in one piece or many."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lang.backends.api import Answer, AnswerError, Grow
from lang.backends.base import TokenLogprob
from lang.tools import ToolCall

_REASONS = {"STOP": "stop", "MAX_TOKENS": "length"}
_REFUSALS = (
    "SAFETY",
    "RECITATION",
    "LANGUAGE",
    "BLOCKLIST",
    "PROHIBITED_CONTENT",
    "SPII",
    "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION",
    "ESCALATION",
    "MODEL_ARMOR",
)


@dataclass
class _Sample:
    text: str = ""
    finish_reason: str = ""
    finish_message: str = ""
    calls: list[Any] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)
    """Kinds of parts that aren't text."""

    def check(self) -> None:
        """Raises AnswerError when it is no whole answer."""
        after = f"after {len(self.text)} characters"
        told = f"{self.finish_reason}: {self.finish_message}" if self.finish_message else self.finish_reason
        if self.finish_reason in ("", "FINISH_REASON_UNSPECIFIED"):
            raise AnswerError(f"the answer broke off {after}: no end was told")
        if self.finish_reason in _REFUSALS:
            raise AnswerError(f"the model refused to answer ({after}): {told}")
        if self.finish_reason not in _REASONS:
            raise AnswerError(f"the answer ended {after} by {told}")
        if self.strange:
            raise AnswerError(f"the model answered with {', '.join(self.strange)}, which is no text")


class Samples:
    """The samples of one answer. Takes a whole answer as it takes a chunk of a stream."""

    def __init__(self, n: int, grow: Grow) -> None:
        self._samples = [_Sample() for _ in range(n)]
        self._grow = grow
        self._logprobs: list[TokenLogprob] = []
        self._usage: Any = None
        self._blocked = ""

    def take(self, answer: Any) -> None:
        """A GenerateContentResponse."""
        self._usage = answer.usage_metadata or self._usage
        feedback = answer.prompt_feedback
        if feedback is not None and feedback.block_reason is not None:
            message = feedback.block_reason_message
            self._blocked = feedback.block_reason.value + (f": {message}" if message else "")
        for candidate in answer.candidates or ():
            index = candidate.index or 0
            sample = self._samples[index]
            if candidate.finish_reason is not None:
                sample.finish_reason = candidate.finish_reason.value
            sample.finish_message = candidate.finish_message or sample.finish_message
            for part in (candidate.content and candidate.content.parts) or ():
                self._take_part(part, sample, first=index == 0)
            if index == 0 and candidate.logprobs_result is not None:
                self._logprobs += _logprobs(candidate.logprobs_result)

    def answer(self) -> Answer:
        """Raises AnswerError when the prompt was blocked, or a sample broke off or is a refusal."""
        if self._blocked:
            raise AnswerError(f"the prompt was blocked: {self._blocked}")
        for sample in self._samples:
            sample.check()
        calls = self._samples[0].calls
        reasons = ["tool_calls" if sample.calls else _REASONS[sample.finish_reason] for sample in self._samples]
        return Answer(
            texts=tuple(sample.text for sample in self._samples),
            meta={**_usage_meta(self._usage), "finish_reason": reasons[0] if len(reasons) == 1 else reasons},
            tool_calls=tuple(
                ToolCall(called.id or f"call_{i}", called.name, dict(called.args or {}))
                for i, called in enumerate(calls)
            ),
            logprobs=self._logprobs or None,
        )

    def _take_part(self, part: Any, sample: _Sample, *, first: bool) -> None:
        if part.thought:
            return
        if part.function_call is not None:
            sample.calls.append(part.function_call)
        elif part.text is not None:
            sample.text += part.text
            if first and part.text:
                self._grow(part.text)
        else:
            sample.strange += sorted(part.model_fields_set - {"thought", "thought_signature"})


def _usage_meta(usage: Any) -> dict[str, Any]:
    """Thoughts count as completion: they are paid for and limited as such. Counts of 0 aren't written by the API."""
    if usage is None:
        return {"prompt_tokens": None, "cached_tokens": None, "completion_tokens": None}
    return {
        "prompt_tokens": usage.prompt_token_count or 0,
        "cached_tokens": usage.cached_content_token_count or 0,
        "completion_tokens": (usage.candidates_token_count or 0) + (usage.thoughts_token_count or 0),
    }


def _logprobs(found: Any) -> list[TokenLogprob]:
    chosen = found.chosen_candidates or []
    tops = found.top_candidates or [None] * len(chosen)
    return [
        TokenLogprob(
            one.token,
            one.token_id,
            one.log_probability,
            tuple((likely.token, likely.token_id, likely.log_probability) for likely in (top and top.candidates) or ()),
        )
        for one, top in zip(chosen, tops)
    ]
