"""Softmax attention with its log-sum-exp, and the merge of two partial results over different keys.

    out = sum_j softmax_j(q k_j / sqrt(d)) v_j,   lse = log sum_j exp(q k_j / sqrt(d))
    merge: out = (e^lse_a a + e^lse_b b) / (e^lse_a + e^lse_b)     (FlashAttention, arXiv 2205.14135, sec. 3.1)

Tiling: PyTorch's flash attention for CPUs (blocks of queries by blocks of keys, scores never leave the cache).
Moves: q, k, v and out once each per block of queries; 4 * queries * keys * head_dim operations a head.
Roofline: the matrix units for many queries, memory bandwidth (k, v) for few.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLASH = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q [batch, heads, queries, d], k and v [batch, heads, keys, d] (any strides but a contiguous d).

    causal: query i sees keys 0..i. mask: added to the scores, broadcast to [batch, heads, queries, keys].
    Returns out [batch, heads, queries, d] and lse [batch, heads, queries].
    """
    if _FLASH is None:
        return attention_reference(q, k, v, causal=causal, mask=mask)
    return _FLASH(q, k, v, 0.0, causal, attn_mask=mask)


def attention_reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same, written as the formula."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = q.to(wide) @ k.to(wide).transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores + mask.to(wide)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v.to(wide)).to(q.dtype), scores.logsumexp(-1)


def merge(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> None:
    """Merges a partial result into another, in place. out, other [..., d]; lse, other_lse [...]."""
    share = torch.sigmoid(other_lse - lse).unsqueeze(-1)
    out.lerp_(other, share.to(out.dtype))
    torch.logaddexp(lse, other_lse, out=lse)
