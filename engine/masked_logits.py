"""Packed bitmasks of tokens, applied to logits on the host: int32 [ceil(vocab / 32)], bit j of word w set means that
token 32 * w + j is allowed.

The bits are never spread out to a flag a token with a branch for each: a byte of the mask is looked up in a table of
eight bounds, +inf for an allowed token and -inf for another, and min(logit, bound) is the logit as the mask lets it be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.logprobs import rows_of

Masks = npt.NDArray[np.int32]
_FEW = 8
"""A mask of which no more than one word in so many has a bit set is read word by word."""


class Candidates(NamedTuple):
    """The tokens that masks allow, by ascending id in each row; a logit of -inf stands for none."""

    logits: Tensor
    """[rows, n]"""
    tokens: Tensor
    """int64 [rows, n]"""

    def tokens_at(self, places: Sequence[int | None]) -> list[int | None]:
        """The token at each row's place; None where it has none."""
        at = torch.tensor([place or 0 for place in places], device=self.tokens.device).unsqueeze(1)
        tokens = self.tokens.gather(1, at).squeeze(1).tolist()
        return [None if place is None else token for place, token in zip(places, tokens, strict=True)]


def stacked(masks: Sequence[Any]) -> Masks:
    """Masks (NumPy or torch) as one array [rows, words]."""
    return np.stack([np.asarray(mask, dtype=np.int32) for mask in masks]).astype("<i4", copy=False)


def have_few(masks: Masks) -> npt.NDArray[np.bool_]:
    """Whether each mask allows so little that `candidates` is cheaper than `only_allowed`."""
    return np.count_nonzero(masks, axis=1) * _FEW <= masks.shape[1]


def only_allowed(logits: Tensor, masks: Masks) -> Tensor:
    """The logits [rows, vocab], -inf where the masks forbid a token. They hold no NaN and are not changed."""
    return torch.minimum(logits, _bounds(masks, logits)[:, : logits.shape[1]])


def candidates(logits: Tensor, masks: Masks, rows: Sequence[int]) -> Candidates:
    """What masks[i] allows of row rows[i] of the logits [any, vocab], which hold no NaN. Only logits of words with a
    bit set are read."""
    vocab = logits.shape[1]
    there = masks != 0
    n = there.sum(axis=1)
    filled = np.arange(max(1, n.max())) < n[:, None]
    words = np.zeros(filled.shape, np.int64)
    row, words[filled] = there.nonzero()
    bits = np.zeros(filled.shape, np.int32)
    bits[filled] = masks[row, words[filled]]
    tokens = torch.from_numpy((words[..., None] * 32 + np.arange(32)).reshape(len(masks), -1)).to(logits.device)
    bounds = _bounds(bits, logits)
    if vocab % 32:
        bounds.masked_fill_(tokens >= vocab, -math.inf)
        tokens.clamp_(max=vocab - 1)
    of = torch.tensor(rows, device=logits.device).unsqueeze(1)
    return Candidates(torch.minimum(logits[of, tokens], bounds), tokens)


def likeliest_allowed(logits: Tensor, masks: Masks, likeliest: Sequence[int]) -> list[int | None]:
    """The likeliest token of each row among those that its mask allows (the lower id of equals); None: there is none.

    logits: [rows, vocab], without NaN; not changed. likeliest: of each row whatever the mask: often it is the answer.
    """
    tokens: list[int | None] = list(likeliest)
    ids = np.asarray(likeliest)
    forbidden = masks[np.arange(len(masks)), ids >> 5] >> (ids & 31) & 1 == 0
    few = have_few(masks)
    for choose, which in ((_among_few, forbidden & few), (_among_many, forbidden & ~few)):
        rows = which.nonzero()[0].tolist()
        if rows:
            best, found = choose(logits, masks[rows], rows)
            for i, value, token in zip(rows, best.tolist(), found.tolist(), strict=True):
                tokens[i] = token if value > -math.inf else None
    return tokens


def _among_many(logits: Tensor, masks: Masks, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The greatest allowed logit of each of the rows, and its token."""
    best, tokens = only_allowed(rows_of(logits, rows), masks).max(dim=-1)
    return best, tokens


def _among_few(logits: Tensor, masks: Masks, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
    found = candidates(logits, masks, rows)
    best, at = found.logits.max(dim=-1)
    return best, found.tokens.gather(1, at.unsqueeze(1)).squeeze(1)


def _bounds(words: Masks, like: Tensor) -> Tensor:
    """+inf for what the words [rows, n] allow, -inf for the rest: [rows, 32 * n] of the same kind as `like`."""
    parts = torch.from_numpy(np.ascontiguousarray(words).view(np.uint8)).int()
    return torch.nn.functional.embedding(parts, _table(like.dtype)).view(len(words), -1).to(like.device)


@lru_cache
def _table(dtype: torch.dtype) -> Tensor:
    """[256, 8]: the bounds that each byte stands for."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return torch.where(bits == 1, math.inf, -math.inf).to(dtype)
