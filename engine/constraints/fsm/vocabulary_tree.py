"""The vocabulary as a tree of bytes, walked over an automaton for all tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from engine.constraints.base import Mask
from engine.constraints.fsm.automaton import DEAD, Automaton
from engine.constraints.masks import packed
from engine.tokenizer import Tokenizer


class VocabularyTree:
    """Tokens that begin with the same bytes share a path from the root.

    vocab_size: of the model; ids that the tokenizer hasn't have no text. eos: ids that end an output. What has no text
    is in no mask but for these.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos: Sequence[int]) -> None:
        self.vocab_size = vocab_size
        self.eos = frozenset(i for i in eos if 0 <= i < vocab_size)
        silent = tokenizer.special_ids | self.eos
        self._texts = [b"" if i in silent else tokenizer.token_bytes(i) for i in range(vocab_size)]
        tokens = {i: text for i, text in enumerate(self._texts) if text}

        number: dict[bytes, int] = {b"": 0}
        parents, signs, self._levels = [0], [0], [1]
        """The nodes of depth d are levels[d - 1] to levels[d]; each comes after its parent."""
        for depth in range(1, max(map(len, tokens.values()), default=0) + 1):
            for path in sorted({text[:depth] for text in tokens.values() if len(text) >= depth}):
                number[path] = len(parents)
                parents.append(number[path[:-1]])
                signs.append(path[-1])
            self._levels.append(len(parents))
        self._parents = np.array(parents, np.int32)
        self._signs = np.array(signs, np.uint8)
        self.ends = packed(sorted(self.eos), vocab_size)
        """The mask of an output that may only end."""
        self._ids = np.array(list(tokens), np.int64)
        self._nodes = np.array([number[text] for text in tokens.values()], np.int64)

    def text(self, token: int) -> bytes:
        """Empty for what has none, ends of sequence and ids out of range included."""
        return self._texts[token] if 0 <= token < self.vocab_size else b""

    def mask(self, automaton: Automaton, state: int) -> Mask:
        """The tokens after which something still matches, and the ends of sequence where the output may end."""
        states = np.full(len(self._parents), DEAD, np.int32)
        states[0] = state
        for first, last in pairwise(self._levels):
            signs = automaton.byte_class[self._signs[first:last]]
            states[first:last] = automaton.table[states[self._parents[first:last]], signs]
            if not states[first:last].any():
                break
        mask = packed(self._ids[states[self._nodes] != DEAD], self.vocab_size)
        return mask | self.ends if automaton.accepting[state] else mask
