"""y = x W^T + b, with what follows it (SiLU, a product, a residual sum) in the same pass where the CPU library can.

Tiling: oneDNN's, over a weight that is laid out once for the matrix units (AMX, AVX-512) when the layer is made.
Moves: W once a call, x and y once each; 2 * tokens * inputs * outputs operations. Roofline: the matrix units for some
hundred tokens or more, memory bandwidth (W) for a few. The plain path computes the same with PyTorch alone.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch can lay a weight of this type out for the CPU and multiply by it."""
    try:
        linear = Linear(torch.eye(32, dtype=dtype), packed=True)
        x = torch.ones(2, 32, dtype=dtype)
        return torch.equal(linear.plus(x, x), x + x) and torch.equal(linear.times(x, x), x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


class Linear:
    """One projection. `weight` is [outputs, inputs], `bias` [outputs] or None; x is [tokens, inputs] throughout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, packed: bool | None = None) -> None:
        self.bias = bias
        self.packed = can_pack(weight.dtype) if packed is None else packed
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T + b: [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU(x W^T + b): [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "swish", [], "")
        return F.silu(F.linear(x, self.weight, self.bias), inplace=True)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other, elementwise: [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, "mul")
        return F.linear(x, self.weight, self.bias).mul_(other)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """x W^T + b + residual: [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        return F.linear(x, self.weight, self.bias).add_(residual)
