"""y = x W^T + b, with what follows it (SiLU, a product, a residual sum) in the same pass where the CPU library can.

Tiling: oneDNN's, over a weight that is laid out once for the matrix units (AMX, AVX-512) when the layer is made.
oneDNN makes and keeps code for each number of tokens that it meets (about 0.7 ms and 0.2 MB each, by operation), so a
packed call is padded to one of few numbers.
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


def padded_tokens(n: int) -> int:
    """The number of tokens that a packed call with n is padded to: at most 16 more, or an eighth."""
    if n <= 16:
        return 1 << max(0, n - 1).bit_length()
    step = max(16, 1 << (n.bit_length() - 4))
    return -(-n // step) * step


def _padded(x: Tensor) -> Tensor:
    n = padded_tokens(len(x))
    if n == len(x):
        return x
    room = x.new_zeros(n, x.shape[1])
    room[: len(x)] = x
    return room


class Linear:
    """One projection. `weight` is [outputs, inputs], `bias` [outputs] or None; x is [tokens, inputs] throughout."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, packed: bool | None = None) -> None:
        self.bias = bias
        self.packed = can_pack(weight.dtype) if packed is None else packed
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T + b: [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(_padded(x), self.weight, self.bias, "none", [], "")[: len(x)]
        return F.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU(x W^T + b): [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(_padded(x), self.weight, self.bias, "swish", [], "")[: len(x)]
        return F.silu(F.linear(x, self.weight, self.bias), inplace=True)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other, elementwise: [tokens, outputs]."""
        if self.packed:
            binary = torch.ops.mkldnn._linear_pointwise.binary
            return binary(_padded(x), _padded(other), self.weight, self.bias, "mul")[: len(x)]
        return F.linear(x, self.weight, self.bias).mul_(other)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """x W^T + b + residual: [tokens, outputs]."""
        if self.packed:
            binary = torch.ops.mkldnn._linear_pointwise.binary
            return binary(_padded(x), _padded(residual), self.weight, self.bias, "add")[: len(x)]
        return F.linear(x, self.weight, self.bias).add_(residual)
