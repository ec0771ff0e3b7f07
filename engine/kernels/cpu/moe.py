"""A mixture of experts on the CPU: tokens are grouped by expert, and each expert that has some multiplies them at once.

Moves: the weights of each expert with tokens once; 2 * tokens * k * parameters of an expert operations. The naive way,
token by token, reads an expert's weights as often as it was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Expert(Protocol):
    def __call__(self, h: Tensor, /) -> Tensor:
        """[tokens, hidden] -> [tokens, hidden]"""


def moe(h: Tensor, experts: Sequence[Expert], chosen: Tensor, shares: Tensor) -> Tensor:
    """Sum of the chosen experts' outputs, weighted: [tokens, hidden] in h's dtype.

    h [tokens, hidden]; chosen int64 [tokens, k], no expert twice for a token; shares [tokens, k]. Experts are added in
    their order, so that a token's sum doesn't depend on what is computed beside it.
    """
    if len(h) == 1:  # nothing to group, and grouping takes a tenth of the time of one token
        return moe_reference(h, experts, chosen, shares)
    out = torch.zeros_like(h)
    order = chosen.flatten().argsort(stable=True)
    ends = torch.bincount(chosen.flatten(), minlength=len(experts)).cumsum(0).tolist()
    at = 0
    for expert, end in zip(experts, ends, strict=True):
        if end > at:
            taken = order[at:end]
            tokens = taken // chosen.shape[1]
            weights = shares.flatten()[taken].unsqueeze(1)
            out.index_add_(0, tokens, (expert(h[tokens]) * weights).to(h.dtype))
        at = end
    return out


def moe_reference(h: Tensor, experts: Sequence[Expert], chosen: Tensor, shares: Tensor) -> Tensor:
    """The same, token by token and expert by expert, in the order of experts."""
    out = torch.zeros_like(h)
    for token in range(len(h)):
        for i in chosen[token].argsort().tolist():
            y = experts[int(chosen[token, i])](h[token : token + 1])[0]
            out[token] += (y * shares[token, i]).to(h.dtype)
    return out
