"""Packed bitmasks of tokens, applied to logits on the host: int32 [ceil(vocab / 32)], bit j of word w set means that
token 32 * w + j is allowed.

The bits are never spread out to a flag a token with a branch for each: a byte of the mask is looked up in a table of
eight bounds, +inf for an allowed token and -inf for another, and min(logit, bound) is the logit as the mask lets it be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.logprobs import rows_of

Masks = npt.NDArray[np.int32]
_FEW = 8
"""A mask of which no more than one word in so many has a bit set is read word by word."""


def stacked(masks: Sequence[Any]) -> Masks:
    """Masks (NumPy or torch) as one array [rows, words]."""
    return np.stack([np.asarray(mask, dtype=np.int32) for mask in masks]).astype("<i4", copy=False)


def only_allowed(logits: Tensor, masks: Masks) -> Tensor:
    """The logits [rows, vocab], -inf where the masks forbid a token. They hold no NaN and are not changed."""
    return torch.minimum(logits, _bounds_of(logits, masks))


def likeliest_allowed(logits: Tensor, masks: Masks, likeliest: Sequence[int]) -> list[int | None]:
    """The likeliest token of each row among those that its mask allows (the lower id of equals); None: there is none.

    logits: [rows, vocab], without NaN; not changed. likeliest: of each row whatever the mask: often it is the answer.
    """
    tokens: list[int | None] = list(likeliest)
    ids = np.asarray(likeliest)
    forbidden = masks[np.arange(len(masks)), ids >> 5] >> (ids & 31) & 1 == 0
    few = np.count_nonzero(masks, axis=1) * _FEW <= masks.shape[1]
    for rows, choose in (
        (np.flatnonzero(forbidden & few), _among_few),
        (np.flatnonzero(forbidden & ~few), _among_many),
    ):
        if len(rows):
            best, found = choose(rows_of(logits, rows.tolist()), masks[rows])
            for i, value, token in zip(rows.tolist(), best.tolist(), found.tolist(), strict=True):
                tokens[i] = token if value > -math.inf else None
    return tokens


def _among_many(logits: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """The greatest allowed logit of each row, and its token."""
    best, tokens = only_allowed(logits, masks).max(dim=-1)
    return best, tokens


def _among_few(logits: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """The same; only the logits of words in which a bit is set are read."""
    vocab = logits.shape[1]
    there = masks != 0
    n = there.sum(axis=1)
    words = np.zeros((len(masks), max(1, n.max())), np.int64)  # where a row has fewer, word 0 stands again: no harm
    words[np.arange(words.shape[1]) < n[:, None]] = there.nonzero()[1]
    ids = torch.from_numpy((words[..., None] * 32 + np.arange(32)).reshape(len(masks), -1)).to(logits.device)
    bounds = _bounds(np.take_along_axis(masks, words, axis=1), logits.dtype).to(logits.device)
    values = torch.minimum(logits.gather(1, ids.clamp(max=vocab - 1)), bounds)
    best, at = values.masked_fill_(ids >= vocab, -math.inf).max(dim=-1)
    return best, ids.gather(1, at.unsqueeze(1)).squeeze(1)


def _bounds_of(logits: Tensor, masks: Masks) -> Tensor:
    return _bounds(masks, logits.dtype)[:, : logits.shape[1]].to(logits.device)


def _bounds(words: Masks, dtype: torch.dtype) -> Tensor:
    """Of the tokens of the words [rows, n]: [rows, 32 * n]."""
    parts = torch.from_numpy(np.ascontiguousarray(words).view(np.uint8)).int()
    return torch.nn.functional.embedding(parts, _table(dtype)).view(len(words), -1)


@lru_cache
def _table(dtype: torch.dtype) -> Tensor:
    """[256, 8]: the bounds that each byte stands for."""
    bits = torch.arange(256).unsqueeze(1) >> torch.arange(8) & 1
    return torch.where(bits == 1, math.inf, -math.inf).to(dtype)
