"""The language on our own engine. The only file of `lang` that knows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.clock import Clock
from engine.request import FinishReason, Request, RequestError, SamplingParams
from lang.backends.base import Call, Tags
from lang.choices import ChoiceScore, ChoicesMethod
from lang.sampling import Sampling

if TYPE_CHECKING:
    from engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Scoring:
    """A select under way. Its call's requests are the choices after the prompt, then perhaps the choices alone."""

    choices: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """What is scored of each choice: the tokens from the first at which any choice leaves the prompt's own tokens."""
    method: ChoicesMethod


class EngineBackend:
    """Calls are queued in the engine at once; a step is one of the engine's."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._open: dict[Call, Scoring | None] = {}
        self._call_of: dict[int, Call] = {}
        """By request id."""

    @property
    def clock(self) -> Clock:
        return self.engine.clock

    def generate(self, name: str | None, prompt: str, sampling: Sampling, tags: Tags) -> Call:
        """Raises RequestError when the engine can't serve it."""
        call = Call(name=name, prompt=prompt, tags=tags)
        params = SamplingParams(**{f.name: getattr(sampling, f.name) for f in dataclasses.fields(sampling)})
        call.requests = self.engine.add(prompt, params, **_placed(tags))
        return self._queue(call, None)

    def score(self, name: str | None, prompt: str, choices: Sequence[str], method: ChoicesMethod, tags: Tags) -> Call:
        """All choices go in together: the prompt is computed once and they share its KV.

        They are scored from the first token at which any of them differs from the prompt alone (a choice may merge with
        the prompt's last token), so that the same text is scored for each. Raises RequestError when it can't be served.
        """
        tokenizer = self.engine.tokenizer
        if tokenizer is None:
            raise RequestError("select needs an engine with a tokenizer: its choices are text")
        alone = list(tokenizer.encode(prompt))
        joined = [list(tokenizer.encode(prompt + choice)) for choice in choices]
        start = max(1, min(_common(alone, tokens) for tokens in joined))
        if any(len(tokens) <= start for tokens in joined):
            raise RequestError(f"select after the prompt {prompt!r:.40}: a choice's first token has nothing before it")
        prompts = [(tokens, start) for tokens in joined]
        if method.needs_unconditional:
            before = list(tokenizer.encode(""))
            if not before:
                raise RequestError(
                    f"choices_method={method.name!r} needs a token to begin with, and this model's tokenizer adds "
                    "none; use token_length_normalized"
                )
            prompts += [(before + tokens[start:], len(before)) for tokens in joined]
        call = Call(name=name, prompt=prompt, tags=tags)
        try:
            for tokens, first in prompts:
                params = SamplingParams(max_tokens=0, prompt_logprobs=0, prompt_logprobs_start=first)
                call.requests += self.engine.add(tokens, params, **_placed(tags))
        except RequestError:
            for request in call.requests:
                self.engine.abort(request)
            raise
        return self._queue(call, Scoring(tuple(choices), tuple(tuple(tokens[start:]) for tokens in joined), method))

    def step(self) -> list[Call]:
        touched = dict.fromkeys(
            call for request in self.engine.step() if (call := self._call_of.pop(request.id, None)) is not None
        )
        if not self.engine.has_work:  # requests that others aborted aren't reported
            touched |= self._open
        return [call for call in touched if self._settle(call)]

    def abort(self, call: Call) -> None:
        self._open.pop(call, None)
        for request in call.requests:
            self._call_of.pop(request.id, None)
            self.engine.abort(request)

    def _queue(self, call: Call, scoring: Scoring | None) -> Call:
        self._open[call] = scoring
        for request in call.requests:
            self._call_of[request.id] = call
        return call

    def _settle(self, call: Call) -> bool:
        """Fills the call in, once its last request has finished."""
        if call not in self._open or not all(request.finished for request in call.requests):
            return False
        scoring = self._open.pop(call)
        for request in call.requests:
            self._call_of.pop(request.id, None)
        call.finished = True
        call.error = next((why for request in call.requests if (why := _failure(request))), None)
        call.meta = {
            "prompt_tokens": sum(request.prompt_tokens for request in call.requests),
            "cached_tokens": sum(request.n_cached for request in call.requests),
            "completion_tokens": sum(request.output_tokens for request in call.requests),
        }
        if call.error is not None:
            return True
        if scoring is None:
            call.texts = tuple(request.text for request in call.requests)
            reasons = [_reason(request) for request in call.requests]
            call.meta["finish_reason"] = reasons[0] if len(reasons) == 1 else reasons
        else:
            scores = _scores(scoring, call.requests)
            call.texts = (scoring.choices[scoring.method.pick(scores)],)
            call.meta["choices"] = scoring.choices
            call.meta["normalized_prompt_logprobs"] = [score.mean_logprob for score in scores]
            call.meta["input_token_logprobs"] = [list(score.logprobs) for score in scores]
        return True


def _placed(tags: Tags) -> Mapping[str, Any]:
    return tags._asdict()


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))


def _reason(request: Request) -> str:
    return request.finish_reason.value if request.finish_reason is not None else "unknown"


def _failure(request: Request) -> str | None:
    if request.finish_reason is FinishReason.ABORT:
        return "it was aborted"
    if request.finish_reason is FinishReason.ERROR:
        return request.error or "the engine gave no reason"
    return None


def _scores(scoring: Scoring, requests: Sequence[Request]) -> list[ChoiceScore]:
    n = len(scoring.choices)
    logprobs = [tuple(entry.logprob for entry in request.prompt_logprobs) for request in requests]
    alone = logprobs[n:] or [()] * n
    return [
        ChoiceScore(choice, tokens, given, without)
        for choice, tokens, given, without in zip(scoring.choices, scoring.tokens, logprobs, alone)
    ]
