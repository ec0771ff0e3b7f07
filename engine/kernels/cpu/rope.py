"""Rotary position embedding: dimensions i and i + head_dim/2 are turned together by the angle of their position.

    a' = a cos - b sin,  b' = b cos + a sin    (RoFormer, arXiv 2104.09864, eq. 34, in the two-halves layout)

Tiling: none. Moves: x once, cosines and sines once a token, the result once; 6 operations a pair.
Roofline: memory bandwidth.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """x [..., tokens, heads, head_dim] (any strides), cos and sin [tokens, 1, head_dim / 2] -> like x."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    torch.mul(a, cos, out=turned[..., :half]).addcmul_(b, sin, value=-1)
    torch.mul(b, cos, out=turned[..., half:]).addcmul_(a, sin)
    return turned
