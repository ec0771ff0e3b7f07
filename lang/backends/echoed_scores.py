"""`select` by log-probabilities on servers whose completions echo the prompt with those of its tokens.

Tokens are told apart by their texts, since the API doesn't give their ids.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from lang.backends.api import AnswerError
from lang.backends.scoring import Scoring, common_length
from lang.choices import ChoiceScore, ChoicesMethod


class Echoed(NamedTuple):
    """One prompt's tokens."""

    texts: tuple[str, ...]
    logprobs: tuple[float | None, ...]
    """None of the first, which has nothing before it."""
    offsets: tuple[int, ...]
    """Characters before each token."""


Echo = Callable[[Sequence[str]], Awaitable[Sequence[Echoed]]]
"""Scores prompts, without any output."""


async def echoed_scores(echo: Echo, prompt: str, choices: Sequence[str], method: ChoicesMethod) -> list[ChoiceScore]:
    """The choices after the prompt, from the first token at which any of them leaves the prompt's own (a choice may
    merge with its last token), so that the same text is scored for each.

    Raises AnswerError when a token has no log-probability.
    """
    alone, *joined = await echo([prompt, *(prompt + choice for choice in choices)])
    ids: dict[str, int] = {}
    before, *tokens = [[ids.setdefault(text, len(ids)) for text in found.texts] for found in (alone, *joined)]
    start = max(1, min(common_length(before, one) for one in tokens))
    logprobs = [_from(found, start) for found in joined]
    if method.needs_unconditional:
        tails = [(prompt + choice)[found.offsets[start] :] for choice, found in zip(choices, joined)]
        without = await echo(tails)
        logprobs += [_same_tokens(found, told.texts[start:], method) for found, told in zip(without, joined)]
    return Scoring(tuple(choices), tuple(tuple(one[start:]) for one in tokens), method).scores(logprobs)


def echoed(choice: Any) -> Echoed:
    """Of one choice of a Completion. Raises AnswerError when the server doesn't echo."""
    found = choice.logprobs
    if found is None or not found.tokens or not found.token_logprobs or found.text_offset is None:
        raise AnswerError(
            "the server echoes no log-probabilities of the prompt, which this select needs; make the backend with "
            "select='choice' or 'schema', or None to refuse it"
        )
    return Echoed(tuple(found.tokens), tuple(found.token_logprobs), tuple(found.text_offset))


def _from(found: Echoed, start: int) -> tuple[float, ...]:
    logprobs = tuple(value for value in found.logprobs[start:] if value is not None)
    if not logprobs or len(logprobs) != len(found.texts) - start:
        raise AnswerError(f"the server gave no log-probability for a token of {''.join(found.texts[start:])!r:.80}")
    return logprobs


def _same_tokens(alone: Echoed, tokens: Sequence[str], method: ChoicesMethod) -> tuple[float, ...]:
    """The log-probabilities of the same tokens with nothing of the prompt before them."""
    start = len(alone.texts) - len(tokens)
    if start < 1 or alone.texts[start:] != tuple(tokens):
        raise AnswerError(
            f"choices_method={method.name!r} needs a token to begin with, and the server's prompts have none: "
            f"{''.join(tokens)!r:.80} alone is {list(alone.texts)!r:.200}; use token_length_normalized"
        )
    return _from(alone, start)
