"""Log-probabilities in the shapes that clients know.

A token that steers and has no text is called by its name (`</s>`). One that is a part of a character has no text
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


class TokenTexts:
    """How the tokens of one tokenizer are written, each by itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._names = {token: text for text, token in tokenizer.added_tokens.items()}

    def text(self, token: int) -> str:
        """With U+FFFD for what is no character."""
        return self.tokenizer.token_bytes(token).decode(errors="replace") or self._name(token)

    def distinct(self, token: int) -> str:
        """With its bytes spelt out where it is no text."""
        exact = self.tokenizer.token_bytes(token)
        try:
            return exact.decode() or self._name(token)
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in exact)

    def _name(self, token: int) -> str:
        return self._names.get(token, f"token_id:{token}")


def chat_logprobs(texts: TokenTexts, tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    """The `content` of a chat choice's logprobs."""

    def told(token: int, logprob: float) -> dict[str, Any]:
        exact = list(texts.tokenizer.token_bytes(token))
        return {"token": texts.text(token), "logprob": finite(logprob), "bytes": exact}

    return [
        {**told(entry.token, entry.logprob), "top_logprobs": [told(*likely) for likely in entry.top]}
        for entry in tokens
    ]


def native_logprobs(texts: TokenTexts, tokens: Sequence[TokenLogprob]) -> list[tuple[float, int, str]]:
    return [(finite(entry.logprob), entry.token, texts.text(entry.token)) for entry in tokens]


def native_top(texts: TokenTexts, tokens: Sequence[TokenLogprob]) -> list[list[tuple[float, int, str]]]:
    return [[(finite(logprob), token, texts.text(token)) for token, logprob in entry.top] for entry in tokens]


class TextLogprobs:
    """The logprobs of one choice of a completion, piece by piece. `text_offset` counts the choice's characters."""

    def __init__(self, texts: TokenTexts, before: Sequence[int]) -> None:
        """before: the token ids before the choice's text begins (nothing, where the prompt is part of it)."""
        self._texts = texts
        self._text = IncrementalDetokenizer(texts.tokenizer, before)
        self._offset = 0

    def take(self, tokens: Sequence[TokenLogprob], unscored: Sequence[int] = ()) -> dict[str, Any]:
        """The next tokens. unscored: those before them that have no log-probability (the first of a prompt)."""
        ids = [*unscored, *(entry.token for entry in tokens)]
        return {
            "tokens": [self._texts.distinct(token) for token in ids],
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
            top.setdefault(self._texts.distinct(token), finite(logprob))
        return top
