"""How `select` ranks its choices, given the log-probability of each of their tokens after the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lang.sampling import closest


class ChoiceScore(NamedTuple):
    """One choice's tokens after the prompt, with their log-probabilities (natural)."""

    choice: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    unconditional: tuple[float, ...] = ()
    """The same tokens' log-probabilities with no prompt before them, where the method asks for it."""

    @property
    def mean_logprob(self) -> float:
        return sum(self.logprobs) / len(self.logprobs)


class ChoicesMethod(NamedTuple):
    name: str
    pick: Callable[[Sequence[ChoiceScore]], int]
    """Index of the choice taken; the first of equals."""
    needs_unconditional: bool = False


def _first_best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda i: values[i])


def _by_mean(scores: Sequence[ChoiceScore]) -> int:
    return _first_best([score.mean_logprob for score in scores])


def _greedily(scores: Sequence[ChoiceScore]) -> int:
    """Token by token, as greedy decoding held to the choices would go.

    A choice that has ended stays in the race with its mean log-probability.
    """
    left = list(range(len(scores)))
    for at in range(max(len(score.tokens) for score in scores)):
        groups: dict[int | None, list[int]] = {}
        for i in left:
            tokens = scores[i].tokens
            groups.setdefault(tokens[at] if at < len(tokens) else None, []).append(i)

        def logprob(members: Sequence[int], at: int = at) -> float:
            score = scores[members[0]]
            return score.logprobs[at] if at < len(score.logprobs) else max(scores[i].mean_logprob for i in members)

        left = max(groups.values(), key=logprob)
        if len(left) == 1:
            break
    return left[0]


def _by_gain(scores: Sequence[ChoiceScore]) -> int:
    gains = [
        sum(given - alone for given, alone in zip(score.logprobs, score.unconditional, strict=True))
        / len(score.logprobs)
        for score in scores
    ]
    return _first_best(gains)


token_length_normalized = ChoicesMethod("token_length_normalized", _by_mean)
"""Highest mean log-probability per token."""
greedy_token_selection = ChoicesMethod("greedy_token_selection", _greedily)
unconditional_likelihood_normalized = ChoicesMethod("unconditional_likelihood_normalized", _by_gain, True)
"""Highest mean gain of log-probability over the choice's tokens with no prompt before them."""

METHODS: Mapping[str, ChoicesMethod] = {
    method.name: method
    for method in (token_length_normalized, greedy_token_selection, unconditional_likelihood_normalized)
}


def choices_method_named(name: str) -> ChoicesMethod:
    """Raises ValueError for a name that isn't one."""
    if name not in METHODS:
        raise ValueError(f"unknown choices_method {name!r}{closest(name, METHODS)} available: {', '.join(METHODS)}")
    return METHODS[name]
