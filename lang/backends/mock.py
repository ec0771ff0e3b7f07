"""A backend without a model, for tests and for trying a program out: every answer is a function of its prompt."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Sequence

from lang.backends.base import Backend, Call, Tags
from lang.backends.recorded_outputs import forced
from lang.capabilities import Capabilities, Feature
from lang.choices import ChoiceScore, ChoicesMethod
from lang.hints import Hint
from lang.prompt import Prompt
from lang.sampling import Sampling
from lang.tools import ToolCall

Reply = Callable[[str], str]
Calls = Callable[[str], Sequence[ToolCall]]
ChoiceLogprobs = Callable[[str, str], Sequence[float]]


def say_ok(_prompt: str) -> str:
    return "ok"


def call_nothing(_prompt: str) -> Sequence[ToolCall]:
    return ()


def by_word_length(_prompt: str, choice: str) -> list[float]:
    return [-float(len(word)) for word in choice.split() or [choice]]


class StepClock:
    """Time that is the number of steps done."""

    def __init__(self) -> None:
        self.steps = 0

    def now(self) -> float:
        return float(self.steps)

    def sleep_until(self, when: float) -> None:
        self.steps = max(self.steps, math.ceil(when))


class MockBackend(Backend):
    """Answers each call `steps_per_call` steps after it came (a number, or a function of the prompt).

    `reply(prompt)` is the output, cut at the first stop string and after `max_tokens` words; `calls(prompt)` are the
    tool calls with it, where tools are offered; `logprobs(prompt, choice)` gives a choice's log-probabilities, one a
    word. Outputs that a run forces are counted in words: recorded ones come out, fixed ones are the reply, over and
    over. By default outputs are "ok" and shorter words are likelier. A reply that isn't what `regex` or `json_schema`
    ask for is the call's error; the schema itself isn't looked at. Outputs grow by equal parts, one a step.
    speculates: as backends over a network do with `num_api_spec_tokens`.
    """

    def __init__(
        self,
        reply: Reply = say_ok,
        logprobs: ChoiceLogprobs = by_word_length,
        steps_per_call: int | Callable[[str], int] = 1,
        calls: Calls = call_nothing,
        speculates: bool = False,
    ) -> None:
        self.speculates = speculates
        self.capabilities = Capabilities(
            "the mock",
            {
                Feature.LOGPROBS: "it has no model; use EngineBackend",
                Feature.FORCED_OUTPUT: "it has no tokens; let its reply say what comes",
            },
        )
        self.clock = StepClock()
        self.log: list[Call] = []
        """Every call, in the order it came."""
        self.aborted: list[Call] = []
        self.committed: list[Prompt] = []
        """The prefixes it was told to cache."""
        self.hints: list[Hint] = []
        """All that it was told of calls to come; it does nothing about them."""
        self._calls = calls
        self._reply = reply
        self._logprobs = logprobs
        self._latency = steps_per_call
        self._left: dict[Call, int] = {}
        self._watched: list[Call] = []

    def generate(self, name: str | None, prompt: Prompt, sampling: Sampling, tags: Tags) -> Call:
        asked = prompt.text(self.style)
        if sampling.outputs != "free":
            return self._queue(_forced(asked, prompt, sampling, self._reply(asked), tags, name))
        text = self._reply(asked)
        for stop in sampling.stop:
            text = text.split(stop)[0]
        for pattern in sampling.stop_regex:
            text = re.split(pattern, text, maxsplit=1)[0]
        words = text.split(" ")
        reason = "length" if len(words) > sampling.max_tokens else "stop"
        text = " ".join(words[: sampling.max_tokens])
        call = Call(name=name, prompt=asked, request=prompt, tags=tags, texts=(text,) * sampling.n)
        call.meta = {**_counts(asked, sampling.n * len(words[: sampling.max_tokens])), "finish_reason": reason}
        if sampling.n > 1:
            alone = {**_counts(asked, len(words[: sampling.max_tokens])), "finish_reason": reason}
            call.sample_meta = (alone,) * sampling.n
        if sampling.tools and sampling.tool_choice != "none":
            call.tool_calls = tuple(self._calls(asked))
        call.error = _unlike(text, sampling)
        return self._queue(call)

    def score(
        self, name: str | None, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod, tags: Tags
    ) -> Call:
        asked = prompt.text(self.style)
        scores = []
        for choice in choices:
            given, alone = tuple(self._logprobs(asked, choice)), tuple(self._logprobs("", choice))
            tokens = tuple(hash_of(word) for word in choice.split() or [choice])
            scores.append(ChoiceScore(choice, tokens, given, alone))
        meta = {
            **_counts(asked, 0),
            "choices": tuple(choices),
            "normalized_prompt_logprobs": [score.mean_logprob for score in scores],
            "input_token_logprobs": [list(score.logprobs) for score in scores],
        }
        picked = choices[method.pick(scores)]
        return self._queue(Call(name=name, prompt=asked, request=prompt, tags=tags, texts=(picked,), meta=meta))

    def step(self) -> list[Call]:
        self.clock.steps += 1
        self._left = {call: left - 1 for call, left in self._left.items()}
        self._watched = [call for call in self._watched if call in self._left]
        for call in self._watched:
            steps = self._steps_of(call)
            call.partial = call.text[: len(call.text) * (steps - self._left[call]) // steps]
        ended = [call for call, left in self._left.items() if left <= 0]
        for call in ended:
            del self._left[call]
            call.finished = True
        return ended

    def abort(self, call: Call) -> None:
        if self._left.pop(call, None) is not None:
            self.aborted.append(call)

    def watch(self, call: Call) -> None:
        self._watched.append(call)

    def commit(self, prompt: Prompt, tags: Tags) -> None:
        self.committed.append(prompt)

    def hint(self, hint: Hint, tags: Tags) -> None:
        self.hints.append(hint)

    def flush_cache(self) -> None:
        """There is none: every answer is computed afresh."""

    def _queue(self, call: Call) -> Call:
        self.log.append(call)
        self._left[call] = self._steps_of(call)
        return call

    def _steps_of(self, call: Call) -> int:
        return self._latency if isinstance(self._latency, int) else self._latency(call.prompt)


def _unlike(text: str, sampling: Sampling) -> str | None:
    """What is wrong with the text, if anything is."""
    if sampling.regex is not None and not re.fullmatch(sampling.regex, text):
        return f"the mock's reply {text!r:.60} doesn't match {sampling.regex!r}"
    if sampling.json_schema is not None:
        try:
            json.loads(text)
        except ValueError:
            return f"the mock's reply {text!r:.60} isn't JSON"
    return None


def hash_of(word: str) -> int:
    """A token id for a word, the same in every process."""
    return int.from_bytes(word.encode()[:7], "big")


def _forced(asked: str, prompt: Prompt, sampling: Sampling, reply: str, tags: Tags, name: str | None) -> Call:
    """A call of a run with forced outputs. Raises ValueError for a recording that can't be used."""
    force = forced(sampling, lambda said: list(range(len(said.split(" ")))))
    recorded = sampling.outputs == "recorded" and sampling.max_tokens > 0
    if recorded:
        texts = [" ".join(said.split(" ")[: sampling.max_tokens]) for said in sampling.recorded]
    else:
        n = sampling.max_tokens if force is None else force.sampling.max_tokens
        texts = [" ".join(itertools.islice(itertools.cycle(reply.split(" ")), n))]
    samples = tuple(texts) if len(texts) > 1 else tuple(texts) * sampling.n
    words, reason = [len(text.split(" ")) for text in samples], "stop" if recorded else "length"
    alone = [{**_counts(asked, n), "finish_reason": reason} for n in words]
    meta = {**alone[0], "completion_tokens": sum(words)}
    call = Call(name=name, prompt=asked, request=prompt, tags=tags, texts=samples, meta=meta)
    call.sample_meta = tuple(alone) if len(alone) > 1 else ()
    return call


def _counts(prompt: str, n_output: int) -> dict[str, int]:
    return {"prompt_tokens": len(prompt.split()), "cached_tokens": 0, "completion_tokens": n_output}
