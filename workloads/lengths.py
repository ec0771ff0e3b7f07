"""Lengths and waits that are drawn: the laws that workloads name, and texts of a given number of tokens."""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable

CHARACTERS = string.ascii_letters + string.digits


def lognormal(rng: random.Random, mean: float, cv: float = 1.0) -> float:
    """Log-normal with this mean and coefficient of variation (deviation / mean)."""
    sigma = math.sqrt(math.log1p(cv * cv))
    return rng.lognormvariate(math.log(mean) - sigma * sigma / 2, sigma)


def drawn_length(rng: random.Random, mean: float, most: int, cv: float = 0.5) -> int:
    """A log-normal length in tokens, 1 to `most`."""
    return max(1, min(most, round(lognormal(rng, mean, cv))))


def random_text(rng: random.Random, n_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """Random letters and digits that take this many tokens, or the most that is no more (a character may take two)."""
    text = "".join(rng.choices(CHARACTERS, k=n_tokens))
    while (n := count_tokens(text)) < n_tokens:
        text += "".join(rng.choices(CHARACTERS, k=max(1, (n_tokens - n) // 2)))
    low, high = 0, len(text)
    while low < high:  # the longest beginning that fits
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count_tokens(text[:middle]) <= n_tokens else (low, middle - 1)
    return text[:low]


def shortened(text: str, n_tokens: int, count_tokens: Callable[[str], int]) -> str:
    """The longest beginning of a text, cut behind a word, that takes at most this many tokens."""
    if count_tokens(text) <= n_tokens:
        return text
    words = text.split(" ")
    low, high = 0, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = count_tokens(" ".join(words[:middle])) <= n_tokens
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


def reread(text: str, n_tokens: int | None, count_tokens: Callable[[str], int]) -> str:
    """As much of an output as takes at most this many tokens when it is read again as text, which may be more than were
    written (half as many again where weights are random); None: all."""
    while n_tokens is not None and count_tokens(text) > n_tokens:
        text = text[: -1 - len(text) // 16]
    return text
