"""A backend without a model, for tests and for trying a program out: every answer is a function of its prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lang.backends.base import Call, Tags
from lang.choices import ChoiceScore, ChoicesMethod
from lang.sampling import Sampling

Reply = Callable[[str], str]
ChoiceLogprobs = Callable[[str, str], Sequence[float]]


def say_ok(_prompt: str) -> str:
    return "ok"


def by_word_length(_prompt: str, choice: str) -> list[float]:
    return [-float(len(word)) for word in choice.split() or [choice]]


class StepClock:
    """Time that is the number of steps done."""

    def __init__(self) -> None:
        self.steps = 0

    def now(self) -> float:
        return float(self.steps)


class MockBackend:
    """Answers each call `steps_per_call` steps after it came (a number, or a function of the prompt).

    `reply(prompt)` is the output, cut at the first stop string and after `max_tokens` words; `logprobs(prompt, choice)`
    gives a choice's log-probabilities, one a word. By default outputs are "ok" and shorter words are likelier.
    """

    def __init__(
        self,
        reply: Reply = say_ok,
        logprobs: ChoiceLogprobs = by_word_length,
        steps_per_call: int | Callable[[str], int] = 1,
    ) -> None:
        self.clock = StepClock()
        self.log: list[Call] = []
        """Every call, in the order it came."""
        self.aborted: list[Call] = []
        self._reply = reply
        self._logprobs = logprobs
        self._latency = steps_per_call
        self._left: dict[Call, int] = {}

    def generate(self, name: str | None, prompt: str, sampling: Sampling, tags: Tags) -> Call:
        text = self._reply(prompt)
        for stop in sampling.stop:
            text = text.split(stop)[0]
        words = text.split(" ")
        reason = "length" if len(words) > sampling.max_tokens else "stop"
        text = " ".join(words[: sampling.max_tokens])
        counts = _counts(prompt, sampling.n * len(words[: sampling.max_tokens]))
        meta = {**counts, "finish_reason": reason}
        return self._queue(Call(name=name, prompt=prompt, tags=tags, texts=(text,) * sampling.n, meta=meta))

    def score(self, name: str | None, prompt: str, choices: Sequence[str], method: ChoicesMethod, tags: Tags) -> Call:
        scores = []
        for choice in choices:
            given, alone = tuple(self._logprobs(prompt, choice)), tuple(self._logprobs("", choice))
            tokens = tuple(hash_of(word) for word in choice.split() or [choice])
            scores.append(ChoiceScore(choice, tokens, given, alone))
        meta = {
            **_counts(prompt, 0),
            "choices": tuple(choices),
            "normalized_prompt_logprobs": [score.mean_logprob for score in scores],
            "input_token_logprobs": [list(score.logprobs) for score in scores],
        }
        picked = choices[method.pick(scores)]
        return self._queue(Call(name=name, prompt=prompt, tags=tags, texts=(picked,), meta=meta))

    def step(self) -> list[Call]:
        self.clock.steps += 1
        self._left = {call: left - 1 for call, left in self._left.items()}
        ended = [call for call, left in self._left.items() if left <= 0]
        for call in ended:
            del self._left[call]
            call.finished = True
        return ended

    def abort(self, call: Call) -> None:
        if self._left.pop(call, None) is not None:
            self.aborted.append(call)

    def _queue(self, call: Call) -> Call:
        self.log.append(call)
        self._left[call] = self._latency if isinstance(self._latency, int) else self._latency(call.prompt)
        return call


def hash_of(word: str) -> int:
    """A token id for a word, the same in every process."""
    return int.from_bytes(word.encode()[:7], "big")


def _counts(prompt: str, n_output: int) -> dict[str, int]:
    return {"prompt_tokens": len(prompt.split()), "cached_tokens": 0, "completion_tokens": n_output}
