"""Cutting a document into parts, and questions about its own sentences."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

CountTokens = Callable[[str], int]
MOST_WORDS = 4
"""Of an answer."""
_SHOWN = (4, 12)
"""Words of a sentence that a question quotes."""


class Asked(NamedTuple):
    question: str
    answer: str


def sentences(text: str) -> list[str]:
    """Roughly: what ends with a stop before a capital letter or a digit, or with a line, blanks behind it."""
    return [one for one in re.split(r"(?<=[.!?])(?=\s+[A-Z0-9\"“])|(?<=\n)", text) if one.strip()]


def segments(text: str, size: int, most: int, count_tokens: CountTokens) -> list[str]:
    """The first `most` parts of about `size` tokens: whole sentences, unless one is longer than that.

    A part may be short of `size` by a sentence; the rest of the text, if it is shorter, is no part.
    """
    parts: list[str] = []
    now, tokens = "", 0
    for sentence in sentences(text):
        for piece in _short(sentence, size, count_tokens):
            more = count_tokens(piece)
            if now and tokens + more > size:
                parts.append(now.strip())
                if len(parts) == most:
                    return parts
                now, tokens = "", 0
            now, tokens = now + piece, tokens + more
    return parts


def _short(sentence: str, size: int, count_tokens: CountTokens) -> list[str]:
    """Halves, and halves of these, until none is longer than `size`."""
    if count_tokens(sentence) <= size or " " not in sentence.strip():
        return [sentence]
    middle = sentence.find(" ", len(sentence) // 2)
    middle = middle if middle > 0 else sentence.rfind(" ", 1)
    if middle <= 0:
        return [sentence]
    return [*_short(sentence[:middle], size, count_tokens), *_short(sentence[middle:], size, count_tokens)]


def questions(
    parts: Sequence[str], n: int, rng: random.Random, count_tokens: CountTokens, max_tokens: int
) -> list[Asked]:
    """n questions, spread over the parts: how a sentence goes on whose beginning stands nowhere else.

    Fewer where the parts have too few such sentences. Answers have at most MOST_WORDS words and `max_tokens` tokens.
    """
    text = "\n".join(parts)
    found: list[list[Asked]] = []
    for part in parts:
        asked = [_asked(sentence, text, count_tokens, max_tokens) for sentence in sentences(part)]
        found.append([one for one in asked if one is not None])
        rng.shuffle(found[-1])
    order = list(range(len(parts)))
    rng.shuffle(order)
    chosen: dict[str, Asked] = {}
    while len(chosen) < n and any(found):
        for i in order:
            if found[i] and len(chosen) < n:
                one = found[i].pop()
                chosen.setdefault(one.question, one)
    return list(chosen.values())


def _asked(sentence: str, text: str, count_tokens: CountTokens, max_tokens: int) -> Asked | None:
    words = sentence.split()
    least, most = _SHOWN
    shown = min(most, len(words) - MOST_WORDS)
    if shown < least:
        return None
    beginning = " ".join(words[:shown])
    if text.count(beginning) != 1:
        return None
    answer = words[shown : shown + MOST_WORDS]
    while answer and count_tokens(" " + " ".join(answer)) > max_tokens:
        answer.pop()
    told = " ".join(answer)
    return Asked(f'How does the sentence go on that begins "{beginning}"?', told) if normalised(told) else None


def normalised(text: str) -> str:
    """Lower case, no punctuation, single blanks."""
    return " ".join("".join(c for c in text.lower() if c not in string.punctuation).split())
