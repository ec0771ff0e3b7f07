"""Texts with a known number of tokens, by whatever tokenizer the model has: words that are one token each."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Callable, Sequence

from workloads.data import DataError

COMMON = """
about after again all also and another answer any are ask back because been before being between both but came can
come could day did does done down each end even every first for found from get give good great had hand has have head
help her here high him his home house how into its just keep kind know large last left life light like line little
long look made make many may more most much must name near need never new next not now number off often old one only
open other our out over own part people place plan point question read right said same say see seen she should show
side small some soon still such system take tell than that the their them then there these they thing think this those
thought three time turn two under use very want was water way well went were what when where which while who why will
with word work world would year you your
"""
"""Words that many tokenizers have as one token."""
LEAST_WORDS = 16
MOST_WORDS = 4096
CHECKED = 8
"""A word counts as one token when so many of it in a row are so many tokens."""


class TextError(DataError):
    """This tokenizer can't be given texts of an exact number of tokens."""


class ExactText:
    """Words, each with a space before it, that are one token each wherever they stand behind one another.

    Every text has `opening` tokens more than it has words: what the tokenizer puts before a text (`<s>`), if anything.
    Raises TextError where too few such words are found.
    """

    def __init__(self, count_tokens: Callable[[str], int]) -> None:
        self.count_tokens = count_tokens
        self.words = _one_token_words(count_tokens)
        if len(self.words) < LEAST_WORDS:
            raise TextError(
                f"texts of an exact length can't be made: only {len(self.words)} of the words tried are one token each "
                f"by this model's tokenizer, {LEAST_WORDS} are needed; take another model.tokenizer, or model=tiny"
            )
        self.opening = count_tokens("".join(self.words[:CHECKED])) - CHECKED

    def digits(self, numbers: int) -> int:
        """Words that it takes to tell `numbers` numbers apart."""
        n = 1
        while len(self.words) ** n < numbers:
            n += 1
        return n

    def numbered(self, number: int, n_words: int, digits: int) -> list[str]:
        """`n_words` words that depend on `number` alone: first its digits (the last one first), then arbitrary ones.

        Two numbers below len(words) ** digits differ within the first `digits` words.
        """
        written = list(itertools.islice(self.digits_of(number), digits))
        filler = random.Random(number).choices(self.words, k=max(0, n_words - digits))
        return [*(self.words[digit] for digit in written), *filler][:n_words]

    def digits_of(self, number: int) -> itertools.chain[int]:
        """The number in base len(words), the last digit first, without end."""

        def places(left: int) -> list[int]:
            base, found = len(self.words), []
            while left:
                left, digit = divmod(left, base)
                found.append(digit)
            return found

        return itertools.chain(places(number), itertools.repeat(0))

    def joined(self, words: Sequence[str], name: str) -> str:
        """The text, counted. Raises TextError when its tokens aren't as many as its words and the opening."""
        text = "".join(words)
        found, wanted = self.count_tokens(text), len(words) + self.opening
        if found != wanted:
            raise TextError(
                f"{name}: {len(words)} words make {found} tokens where {wanted} were meant: this model's tokenizer "
                "merges words, so that lengths can't be exact; take another model.tokenizer, or model=tiny"
            )
        return text


def _one_token_words(count_tokens: Callable[[str], int]) -> tuple[str, ...]:
    letters = ("".join(combo) for n in (1, 2, 3) for combo in itertools.product(string.ascii_lowercase, repeat=n))
    start = count_tokens("a")
    tried = dict.fromkeys(f" {word}" for word in itertools.chain(COMMON.split(), letters))
    fitting = (word for word in tried if count_tokens("a" + word * CHECKED) == start + CHECKED)
    return tuple(itertools.islice(fitting, MOST_WORDS))
