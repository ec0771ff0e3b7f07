"""Root mean square norm (Zhang & Sennrich, arXiv 1910.07467): y = x / sqrt(mean(x^2) + eps) * w, last dimension.

Tiling: none, whole rows. Moves: x once for the sum of squares, once for the product, y once; 4 operations an element.
Roofline: memory bandwidth (callers keep the rows of one call small enough for the second-level cache).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x [..., size], weight [size] -> [..., size]. The sum of squares is taken in float32 (float64 for float64)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    scale = norm.mul_(norm).div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).to(x.dtype).mul_(weight)
