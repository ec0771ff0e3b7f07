"""Mixtral: a Llama whose MLPs are mixtures of experts (Jiang et al., arXiv 2401.04088).

y = sum over the k experts e with the largest router logits of share_e * SwiGLU_e(h),
share = softmax of all router logits, renormalised over the k taken
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.cpu.moe import moe
from engine.models.llama import SwiGLU


class Routing(NamedTuple):
    """Which experts each token takes."""

    chosen: Tensor
    """int64 [tokens, k]."""
    shares: Tensor
    """float32 [tokens, k]; a token's sum to 1."""


def route(logits: Tensor, k: int) -> Routing:
    """logits [tokens, experts] in the model's dtype. The softmax is taken in float32, as transformers takes it."""
    probabilities = F.softmax(logits.to(torch.float32), dim=-1)
    shares, chosen = torch.topk(probabilities, k, dim=-1)
    return Routing(chosen, shares / shares.sum(dim=-1, keepdim=True))


class SparseMoE:
    """One layer's experts on the CPU."""

    def __init__(self, router: Tensor, experts: Sequence[SwiGLU], k: int) -> None:
        """router [experts, hidden]: the rows that a token's logits come from."""
        self.router = router
        self.experts = experts
        self.k = k

    def plus(self, h: Tensor, residual: Tensor) -> Tensor:
        """residual + the mixture's output: [tokens, hidden] each."""
        routing = route(F.linear(h, self.router), self.k)
        return moe(h, self.experts, routing.chosen, routing.shares).add_(residual)
