"""The text of an output as it grows: no character split, nothing taken back, cut just before the first stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from itertools import chain

from engine.tokenizer import Tokenizer

_LONGEST_UNFINISHED = 3
"""Bytes of a UTF-8 character that may stand there without its end."""


class IncrementalDetokenizer:
    """The text that output tokens add to a prompt's. A push costs the bytes of its token.

    The law, for any prompt and any cut of `ids` into pushes: what the pushes gave, joined, and the flush is
    `decode(prompt + ids)` without its start `decode(prompt)`. So a sentencepiece token keeps its leading space when it
    follows text and loses it at the very start. Where the prompt ends inside a character, that character is the
    output's, whole.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = (), taken_back: Sequence[int] = ()) -> None:
        """prompt: the token ids before the output; a few are read, from the end. A tail will do if it has some text.
        taken_back: more of them, whose bytes the output says again before its own: those are left out."""
        self._tokenizer = tokenizer
        self._again = sum(len(tokenizer.token_bytes(token)) for token in taken_back)
        """Bytes that are yet to be left out."""
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        tail = b""
        for token in chain(reversed(taken_back), reversed(prompt)):
            tail = tokenizer.token_bytes(token) + tail
            if len(tail) >= _LONGEST_UNFINISHED:
                break
        self._at_start = tokenizer.strips_leading_space and not tail
        # the bytes before an unfinished character don't matter: its first byte starts afresh whatever came before
        self._decoder.decode(tail[-_LONGEST_UNFINISHED:])

    def push(self, token: int) -> str:
        """The text that is final now: perhaps empty, perhaps with the end of an earlier token's character."""
        new = self._tokenizer.token_bytes(token)
        if self._again:
            again = min(self._again, len(new))
            self._again, new = self._again - again, new[again:]
        if self._at_start and new:
            self._at_start = False
            new = new.removeprefix(b" ")
        return self._decoder.decode(new)

    def flush(self) -> str:
        """U+FFFD if the output ended inside a character, else nothing. The output is over."""
        return self._decoder.decode(b"", final=True)


class OutputText:
    """Push the output's tokens until `stopped_by` is set or the output is over, then `flush`.

    After each token the text so far is looked at, as a reader would who sees it grow token by token. A stop string
    counts when the token that completed it was number `min_tokens` of the output or a later one. Of several that the
    same token completed, the one that begins first counts, and of those the first in `stop`. A token that ends the
    output by its id (end of sequence, stop token) is not part of the text: don't push it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int] = (),
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        taken_back: Sequence[int] = (),
    ) -> None:
        """prompt, taken_back: as of `IncrementalDetokenizer`. Raises ValueError for an empty stop string."""
        if not all(stop):
            raise ValueError(
                f"stop={tuple(stop)!r} holds an empty string, which would end every output at once: drop it"
            )
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt, taken_back)
        self._stop = tuple(stop)
        self._min_tokens = min_tokens
        self._n_tokens = 0
        self._released: list[str] = []
        self._held = ""
        """The longest end of the text that may be the beginning of a stop string."""
        self.stopped_by: str | None = None
        """The stop string that ended the text."""

    @property
    def text(self) -> str:
        """All of it so far, with what is held back from the stream. Exact once the output is over."""
        return "".join(self._released) + self._held

    def push(self, token: int) -> str:
        """The text that may be streamed now: never a part of a stop string that is still coming.

        Raises RuntimeError after a stop string.
        """
        if self.stopped_by is not None:
            raise RuntimeError(f"the output ended with the stop string {self.stopped_by!r}: no token can follow")
        self._n_tokens += 1
        return self._grow(self._detokenizer.push(token))

    def flush(self) -> str:
        """The rest of the text, when the output ended for another reason than a stop string (else nothing is left)."""
        if self.stopped_by is not None:
            return ""
        released = self._grow(self._detokenizer.flush())
        rest, self._held = self._held, ""
        self._released.append(rest)
        return released + rest

    def _grow(self, new: str) -> str:
        if not new:
            return ""
        window = self._held + new
        if self._n_tokens >= self._min_tokens:
            cut = self._first_stop(window, len(self._held))
            if cut is not None:
                window, self.stopped_by = window[: cut[0]], cut[1]
        safe = len(window) if self.stopped_by is not None else self._earliest_beginning(window)
        self._held = window[safe:]
        self._released.append(window[:safe])
        return window[:safe]

    def _first_stop(self, window: str, n_old: int) -> tuple[int, str] | None:
        """Start and string of the stop that begins first among those that end after `n_old` characters."""
        found = [(window.find(stop, max(0, n_old - len(stop) + 1)), stop) for stop in self._stop]
        return min((hit for hit in found if hit[0] >= 0), key=lambda hit: hit[0], default=None)

    def _earliest_beginning(self, window: str) -> int:
        """The first place from which the rest of `window` is the beginning, but not the whole, of a stop string."""
        earliest = len(window)
        for stop in self._stop:
            at = window.find(stop[0], max(0, len(window) - len(stop) + 1))
            while 0 <= at < earliest:
                if stop.startswith(window[at:]):
                    earliest = at
                    break
                at = window.find(stop[0], at + 1)
        return earliest
