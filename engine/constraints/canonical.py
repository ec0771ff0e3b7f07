"""The tokenizer's own ids for a text that is forced, as far as they stay the same whatever follows.

The law, for byte-pair encoding: the ids of a text up to the start of one of its tokens are the ids of that part alone.
So let `forced` be followed by anything. One token of the whole covers or touches its end; it begins at some place p
of `forced` where the rest, forced[p:], begins a token of the vocabulary (p at the very end: the rest is empty). What
stands before it is encoded as forced[:p] alone. Which p it will be isn't known yet, but what the encodings of all these
forced[:p] begin with in common is there in any case.

Dropping the last token is not enough: with the merges bc, ab, xa in this order "xab" is x + ab, and "xabc" is xa + bc.

Tokenizers that first split a text at its words look one character further: the ids must also be there when a letter, a
digit, white space or a sign follows.
"""

from __future__ import annotations

import string
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import takewhile

from engine.tokenizer import Tokenizer

_BEFORE = ("\n", "|", "\x00")
"""Characters that may stand before a text; one that the tokenizer doesn't merge with its first token is taken."""
_AFTER = (
    (frozenset(string.ascii_letters.encode()), ("a", "A")),
    (frozenset(string.digits.encode()), ("0",)),
    (frozenset(string.whitespace.encode()), (" ", " a", "\n")),
    (
        frozenset(range(0x80)) - frozenset(string.printable.encode()) | frozenset(string.punctuation.encode()),
        (".", "'s", '"'),
    ),
    (frozenset(range(0x80, 0x100)), ("é", "中", "—")),
)
"""What a tokenizer that looks ahead may find behind a text, for each kind of first byte."""
_LONGEST_UNFINISHED = 3
"""Bytes of a UTF-8 character that may stand there without its end."""


def inner_encode(tokenizer: Tokenizer) -> Callable[[str], list[int] | None]:
    """The ids of a text that other text stands before: without the space that sentencepiece puts at the very start.

    None where the ids don't spell the text: it holds the name of a special token, or is changed by normalisation.
    """
    starts = [(before, tokenizer.encode(before, add_special_tokens=False)) for before in _BEFORE]

    def spells(ids: Sequence[int], text: str) -> bool:
        return b"".join(map(tokenizer.token_bytes, ids)) == text.encode()

    def encode(text: str) -> list[int] | None:
        if not tokenizer.strips_leading_space:
            ids = tokenizer.encode(text, add_special_tokens=False)
            return ids if spells(ids, text) else None
        for before, start in starts:
            ids = tokenizer.encode(before + text, add_special_tokens=False)
            if ids[: len(start)] == start and spells(ids[len(start) :], text):
                return ids[len(start) :]
        return None

    return encode


def unfinished_character(tail: bytes) -> bytes:
    """The bytes at the end of a text that begin a UTF-8 character and don't end it. tail: its last 3 bytes or more."""
    for n in range(1, min(_LONGEST_UNFINISHED, len(tail)) + 1):
        lead = tail[-n]
        if lead >= 0xC0:
            return tail[-n:] if n < 2 + (lead >= 0xE0) + (lead >= 0xF0) else b""
        if lead < 0x80:
            break
    return b""


class Canonical:
    """The law for one tokenizer. vocab_size: of the model; eos: ids that end an output and are nobody's text."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int]) -> None:
        self._bytes = tokenizer.token_bytes
        self._encode = inner_encode(tokenizer)
        never = tokenizer.special_ids | set(eos)
        self._allowed = frozenset(i for i in range(min(vocab_size, tokenizer.vocab_size)) if i not in never)
        self._texts = sorted({tokenizer.token_bytes(i) for i in self._allowed} - {b""})
        self._longest = max(map(len, self._texts), default=0)
        self._stable = lru_cache(maxsize=4096)(self._find_stable)

    def ids(self, forced: bytes, *, following: bytes | None = None, tail: bytes = b"") -> list[int]:
        """Perhaps none. Their text is `forced` or its beginning.

        following: the bytes one of which comes next, if anything does; None: any.
        tail: the last bytes of the output so far, 3 or more if there are as many: a character that begins there is
            encoded as a whole, and its ids count if one of them begins where `forced` does.
        """
        begun = unfinished_character(tail)
        whole = begun + forced
        cut = unfinished_character(whole)
        if cut:
            whole, following = whole[: -len(cut)], cut[:1]
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            return []
        ids = list(self._stable(text, following))
        n_begun = 0
        while n_begun < len(begun):
            if not ids:
                return []
            n_begun += len(self._bytes(ids.pop(0)))
        return ids if n_begun == len(begun) else []

    def _encoded(self, text: str) -> tuple[int, ...]:
        ids = self._encode(text)
        return () if ids is None else tuple(takewhile(self._allowed.__contains__, ids))

    def _find_stable(self, text: str, following: bytes | None) -> tuple[int, ...]:
        ids = self._encoded(text)
        if following == b"":
            return ids
        written = text.encode()
        for p in range(max(0, len(written) - self._longest), len(written)):
            if not ids:
                return ids
            if self._begins_a_token(written[p:], following):
                ids = _common(ids, self._up_to(written, p))
        for kind, texts in _AFTER:
            if following is None or not kind.isdisjoint(following):
                for after in texts:
                    ids = _common(ids, self._encoded(text + after))
        return ids

    def _up_to(self, written: bytes, p: int) -> tuple[int, ...]:
        """The ids of what stands before p; as far as they are certain, where p is inside a character."""
        cut = unfinished_character(written[:p])
        if cut:
            return self._stable(written[: p - len(cut)].decode(), cut[:1])
        return self._encoded(written[:p].decode())

    def _begins_a_token(self, rest: bytes, following: bytes | None) -> bool:
        """Of those that are longer."""
        if following is None:
            at = bisect_right(self._texts, rest)
            return at < len(self._texts) and self._texts[at].startswith(rest)
        longer = (rest + bytes([byte]) for byte in following)
        return any(
            at < len(self._texts) and self._texts[at].startswith(start)
            for start in longer
            for at in (bisect_left(self._texts, start),)
        )


def _common(some: tuple[int, ...], others: tuple[int, ...]) -> tuple[int, ...]:
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others)))
    return some[:n]
