"""Log-probabilities of tokens, and the likeliest tokens, from rows of logits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from engine.request import TokenLogprob

_SCORED_AT_ONCE = 256
"""Positions whose log-softmax is in memory at a time."""


def score(logits: torch.Tensor, targets: Sequence[int], k: int) -> tuple[TokenLogprob, ...]:
    """Log-probability of targets[i] under logits[i], with the k likeliest tokens (those of probability 0 left out).

    logits: [positions, vocab]; the softmax is in float32, in float64 when the logits are. Ties go to the lower id.
    Raises ValueError for logits that hold NaN or +inf, and for targets outside the vocabulary.
    """
    vocab = logits.shape[-1]
    if len(logits) != len(targets):
        raise ValueError(f"{len(targets)} targets were given for {len(logits)} rows of logits: one each is needed")
    out: list[TokenLogprob] = []
    for start in range(0, len(targets), _SCORED_AT_ONCE):
        chunk = list(targets[start : start + _SCORED_AT_ONCE])
        for target in chunk:
            if not 0 <= target < vocab:
                raise ValueError(f"token {target} can't be scored: ids go from 0 to {vocab - 1}")
        logprobs = torch.log_softmax(logits[start : start + len(chunk)], dim=-1, dtype=precision_of(logits))
        own = logprobs.gather(1, torch.tensor(chunk, device=logits.device).unsqueeze(1)).squeeze(1).tolist()
        for i, value in enumerate(own):
            if math.isnan(value):
                raise ValueError(
                    f"the logits at row {start + i} can't be scored: they hold NaN or +inf, or are all -inf"
                )
        if k == 0:
            out += [TokenLogprob(token, value) for token, value in zip(chunk, own, strict=True)]
            continue
        values, ids = likeliest(logprobs, min(k, vocab))
        for token, value, row_ids, row_values in zip(chunk, own, ids.tolist(), values.tolist(), strict=True):
            top = tuple((t, v) for t, v in zip(row_ids, row_values, strict=True) if v > -math.inf)
            out.append(TokenLogprob(token, value, top))
    return tuple(out)


def likeliest(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest of each row, largest first, ties by lower id (below -inf the ids mean nothing).

    values: [rows, vocab] without NaN. Returns values and int64 ids, both [rows, k].
    """
    if 8 * k >= values.shape[-1]:
        ordered, ids = values.sort(dim=-1, descending=True, stable=True)
        return ordered[:, :k], ids[:, :k]
    top, ids = values.topk(k + 1, dim=-1)
    # topk takes any of the values that are equal at its border: where there are such, the lowest ids are chosen
    border = top[:, k - 1 : k]
    tied = ((top[:, k] == border.squeeze(1)) & (top[:, k] > -math.inf)).nonzero().squeeze(1).tolist()
    ids = ids[:, :k]
    if tied:
        rows, last = rows_of(values, tied), rows_of(border, tied)
        above, equal = rows > last, rows == last
        room = k - above.sum(dim=-1, keepdim=True)
        ids[tied] = (above | (equal & (equal.cumsum(dim=-1, dtype=torch.int32) <= room))).nonzero()[:, 1].view(-1, k)
    ids = ids.sort(dim=-1).values
    top, order = values.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return top, ids.gather(1, order)


def rows_of(values: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    """The chosen rows, in order; not copied when they are all of them."""
    return values if len(chosen) == len(values) else values[list(chosen)]


def precision_of(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32
