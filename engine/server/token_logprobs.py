"""Log-probabilities in the two shapes that OpenAI has for them.

A token that has no text of its own (special ones) is called `token_id:N`. One that is a part of a character has no text
either: completions, whose likeliest tokens are told apart by their text alone, write its bytes (`bytes:\\xe2\\x82`), as
OpenAI does; chat gives exact bytes beside a text with U+FFFD. JSON has no infinity: -9999.0 stands for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engine.detokenizer import IncrementalDetokenizer
from engine.request import TokenLogprob
from engine.tokenizer import Tokenizer

_LEAST = -9999.0


def finite(logprob: float) -> float:
    return max(logprob, _LEAST)


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """The `content` of a chat choice's logprobs."""
    return [
        {
            **_chat_token(tokenizer, entry.token, entry.logprob),
            "top_logprobs": [_chat_token(tokenizer, token, logprob) for token, logprob in entry.top],
        }
        for entry in tokens
    ]


def _chat_token(tokenizer: Tokenizer, token: int, logprob: float) -> dict[str, Any]:
    exact = tokenizer.token_bytes(token)
    text = exact.decode(errors="replace") if exact else f"token_id:{token}"
    return {"token": text, "logprob": finite(logprob), "bytes": list(exact)}


class TextLogprobs:
    """The logprobs of one choice of a completion, piece by piece. `text_offset` counts the choice's characters."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        """before: the token ids before the choice's text begins (nothing, where the prompt is part of it)."""
        self._tokenizer = tokenizer
        self._text = IncrementalDetokenizer(tokenizer, before)
        self._offset = 0

    def take(self, tokens: Sequence[TokenLogprob], unscored: Sequence[int] = ()) -> dict[str, Any]:
        """The next tokens. unscored: those before them that have no log-probability (the first of a prompt)."""
        names = [self._name(token) for token in unscored] + [self._name(entry.token) for entry in tokens]
        ids = [*unscored, *(entry.token for entry in tokens)]
        return {
            "tokens": names,
            "token_logprobs": [None] * len(unscored) + [finite(entry.logprob) for entry in tokens],
            "top_logprobs": [None] * len(unscored) + [self._top(entry) for entry in tokens],
            "text_offset": [self._advance(token) for token in ids],
        }

    def _advance(self, token: int) -> int:
        at = self._offset
        self._offset += len(self._text.push(token))
        return at

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        """The likeliest and the token itself. Of two with the same text the likelier one is told."""
        top: dict[str, float] = {}
        for token, logprob in (*entry.top, (entry.token, entry.logprob)):
            top.setdefault(self._name(token), finite(logprob))
        return top

    def _name(self, token: int) -> str:
        exact = self._tokenizer.token_bytes(token)
        if not exact:
            return f"token_id:{token}"
        try:
            return exact.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in exact)
