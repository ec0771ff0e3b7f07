"""A select on an engine that gives the log-probability of each token of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lang.choices import ChoiceScore, ChoicesMethod


@dataclass(frozen=True, slots=True)
class Scoring:
    """A select under way. Its call's requests are the choices after the prompt, then perhaps the choices alone."""

    choices: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    """What is scored of each choice: the tokens from the first at which any choice leaves the prompt's own tokens."""
    method: ChoicesMethod

    def scores(self, logprobs: Sequence[tuple[float, ...]]) -> list[ChoiceScore]:
        """logprobs: of the tokens scored, one entry a request."""
        n = len(self.choices)
        alone = logprobs[n:] or [()] * n
        return [
            ChoiceScore(choice, tokens, given, without)
            for choice, tokens, given, without in zip(self.choices, self.tokens, logprobs, alone)
        ]


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
