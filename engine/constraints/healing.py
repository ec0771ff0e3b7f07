"""Token healing: a prompt's end is taken back and said again by the model, so that a token may lie over the border.

A prompt that ends in "http:" ends in a token that no training text has before "//": there it was "://". So the last
token is taken off the prompt, and the output is held to begin with its bytes: by that token again, by a longer one that
begins with it, or by shorter ones.

The law. Taken back is the longest run of tokens at the prompt's end whose text, together, is a proper beginning of
another token's: whatever token the tokenizer may write over the border begins at the start of one of them. Never in it
are the prompt's first token, control tokens, and a part of a character. A token may come while the bytes `rest` are
still to be said if it begins with them or they begin with it; once they are said, any may.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from engine.constraints.base import GrammarError, Mask
from engine.constraints.masks import packed
from engine.constraints.session import Constraint, Forced
from engine.request import Tokens
from engine.tokenizer import Tokenizer

_KEPT_MASKS = 256


class Healing:
    """The law for one tokenizer. vocab_size: of the model; eos: ids that end an output and are nobody's text."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int]) -> None:
        silent = tokenizer.special_ids | set(eos)
        self._control = silent | {i for text, i in tokenizer.added_tokens.items() if not text.isspace()}
        """Tokens that are read from a text before the others are: nothing merges with them. Added runs of white space
        are vocabulary like any other."""
        self._bytes = tokenizer.token_bytes
        self._vocab_size = vocab_size
        known = range(min(vocab_size, tokenizer.vocab_size))
        tokens = sorted((text, i) for i in known if i not in silent and (text := tokenizer.token_bytes(i)))
        self._texts = [text for text, _ in tokens]
        self._ids = np.array([i for _, i in tokens], np.int64)
        self._longest = max(map(len, self._texts), default=0)
        self.may_come = lru_cache(maxsize=_KEPT_MASKS)(self._find_allowed)
        """The mask of what may come while these bytes are to be said. Not to be changed."""

    def text(self, tokens: Sequence[int]) -> bytes:
        return b"".join(map(self._bytes, tokens))

    def runs(self, prompt: Tokens) -> list[int]:
        """How many tokens may be taken off the prompt's end, the longest run first; empty: none."""
        found: list[int] = []
        rest = b""
        for n in range(1, len(prompt)):
            token = int(prompt[-n])
            if token in self._control or not (text := self._bytes(token)):
                break
            rest = text + rest
            if len(rest) >= self._longest:
                break
            if _is_whole(rest) and self._ids[self._longer(rest)].size:
                found.insert(0, n)
        return found

    def crosses(self, mask: Mask, rest: bytes) -> bool:
        """The mask allows a token that says `rest` and more."""
        return bool((mask & packed(self._ids[self._longer(rest)], self._vocab_size)).any())

    def _find_allowed(self, rest: bytes) -> Mask:
        parts = [self._ids[self._same(rest[:n])] for n in range(1, len(rest) + 1)]
        return packed(np.concatenate([*parts, self._ids[self._longer(rest)]]), self._vocab_size)

    def _same(self, text: bytes) -> slice:
        """Where the tokens stand whose bytes are `text`."""
        return slice(bisect_left(self._texts, text), bisect_right(self._texts, text))

    def _longer(self, rest: bytes) -> slice:
        """Where the tokens stand that begin with `rest` and go on."""
        end = bisect_right(self._texts, rest, key=lambda text: text[: len(rest)])
        return slice(bisect_right(self._texts, rest), end)


class Healed(Constraint):
    """A request without a grammar whose prompt's end was taken back: `rest` is to be said, then anything.

    Its masks are looked up, so no thread prepares them; there is none once `rest` is said.
    """

    needs_mask = False

    def __init__(self, healing: Healing, rest: bytes) -> None:
        self.compile_s = self.mask_s = 0.0
        self.forced_tokens = self.passes_saved = 0
        self.error = None
        self._healing = healing
        self._rest = rest

    def begin(self, room: int) -> tuple[int, ...]:
        """Nothing is certain: a longer token may come, or it wouldn't have been taken back."""
        return ()

    def follow(self, token: int, room: int) -> Forced:
        if self._rest:
            text = self._healing.text((token,))
            if not text or not (text.startswith(self._rest) or self._rest.startswith(text)):
                raise GrammarError(f"token {token} came where the output is to begin with {self._rest!r}")
            self._rest = self._rest[len(text) :]
        return Forced((), False)

    def mask(self) -> Mask | None:
        return self._healing.may_come(self._rest) if self._rest else None


def _is_whole(text: bytes) -> bool:
    """No character is cut."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True
