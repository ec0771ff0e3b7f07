"""Chat prompts as tokens: a control token comes from the template, never from what somebody wrote in a message.

A message may hold the text of a control token (`<|im_end|>`). Read as that token it would end the message and let its
author speak as another. So each such place is marked before the template is rendered, and what is marked is encoded as
the plain text it is. Templates may strip, cut and split what is marked.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from engine.request import RequestError
from engine.tokenizer import Tokenizer

_NONCE = "".join(secrets.choice("0123456789") for _ in range(24))
"""Nobody outside this process can know it, so nobody can write a mark. Digits: no template changes them."""
_OPEN, _CLOSE, _BREAK = (f"{_NONCE}{kind:06d}" for kind in (0, 1, 2))
_FIRST_NAME = 3


class Marked(NamedTuple):
    value: Any
    found: bool
    """Something was marked."""


class ControlTokens:
    """The control tokens of one tokenizer, as one template uses them."""

    def __init__(self, tokenizer: Tokenizer, template_text: str) -> None:
        """template_text: the texts that the template itself writes. Added tokens among them are control tokens, as
        are special ones and those in brackets; other added tokens are vocabulary that anybody may use."""
        self._tokenizer = tokenizer
        self._ids = {
            text: i
            for text, i in tokenizer.added_tokens.items()
            if i in tokenizer.special_ids or (not text.isspace() and (text in template_text or text[0] in "<[{"))
        }
        unknown = tokenizer.special_tokens.get("unk_token")
        self._exact = frozenset(id for text, id in self._ids.items() if text != unknown)
        """What no text becomes; the token for unknown characters stands for some."""
        longest_first = sorted(self._ids, key=lambda text: (-len(text), text))
        self._names = {text: f"{_NONCE}{i:06d}" for i, text in enumerate(longest_first, _FIRST_NAME)}
        tokens = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._token = re.compile(tokens)
        self._part = re.compile(f"{_OPEN}({tokens}){_CLOSE}|({_OPEN}|{_CLOSE}|{_BREAK})|({tokens})")
        self._tails = {text[:n] for text in self._ids for n in range(1, len(text))}
        """What, at the end of a text, could become a control token with what follows it."""
        self._heads = {text[n:] for text in self._ids for n in range(1, len(text))}
        self._longest = max(map(len, self._ids), default=0)

    @cached_property
    def _encode(self) -> Callable[[str], list[int]]:
        """A copy of the tokenizer, made when it is first needed."""
        return self._tokenizer.named_encoder(self._names)

    def mark(self, value: Any) -> Marked:
        """The messages or tools with their texts marked; keys too. Raises RequestError for one that holds a mark."""
        found = False

        def walk(value: Any) -> Any:
            nonlocal found
            if isinstance(value, str):
                marked = self._mark_text(value)
                found |= marked is not value
                return marked
            if isinstance(value, Mapping):
                return {walk(key): walk(item) for key, item in value.items()}
            if isinstance(value, Sequence):
                return [walk(item) for item in value]
            return value

        return Marked(walk(value), found)

    def encode(self, rendered: str) -> list[int]:
        """Tokens of a rendered template whose inputs were marked. Raises RequestError where the tokenizer makes a
        control token of plain text."""
        n_control = 0

        def name(match: re.Match[str]) -> str:
            nonlocal n_control
            literal, _mark, token = match.groups()
            if token is None:
                return literal or ""
            n_control += self._ids[token] in self._exact
            return self._names[token]

        text = self._part.sub(name, rendered)
        ids = self._encode(text)
        if sum(token in self._exact for token in ids) != n_control:
            raise RequestError(
                "a message holds the text of a control token that this tokenizer can't write as plain text: "
                "take it out of the message"
            )
        return ids

    def _mark_text(self, text: str) -> str:
        """The same object where there is nothing to mark."""
        if _NONCE in text:
            raise RequestError("a message holds a mark of this server's own: take it out")
        marked = self._token.sub(lambda match: f"{_OPEN}{match[0]}{_CLOSE}", text)
        end = len(marked.rstrip())
        if any(marked[max(0, end - n) : end] in self._tails for n in range(1, min(self._longest, end + 1))):
            marked = f"{marked[:end]}{_BREAK}{marked[end:]}"
        start = len(marked) - len(marked.lstrip())
        if any(marked[start : start + n] in self._heads for n in range(1, self._longest)):
            marked = f"{marked[:start]}{_BREAK}{marked[start:]}"
        return marked if len(marked) != len(text) else text
