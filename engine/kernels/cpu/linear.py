"""y = x W^T + b, with what follows it (SiLU, a product, a residual sum) in the same pass where the CPU library can.

Tiling: oneDNN's, over a weight that is laid out once for the matrix units (AMX, AVX-512) when the layer is made.
oneDNN makes and keeps code for each number of tokens that it meets (about 0.7 ms and 0.2 MB each, by operation), so a
packed call is padded to one of few numbers.
Moves: W once a call, x and y once each; 2 * tokens * inputs * outputs operations. Roofline: the matrix units for some
hundred tokens or more, memory bandwidth (W) for a few. The plain path computes the same with PyTorch alone.

A weight in 8 bits is int8 with a float32 scale for each output: y = (x W8^T) * scale + b. A few tokens in bfloat16 are
multiplied by the int8 numbers as they are read (half of W's bytes move); all else by blocks of outputs that are widened
into a buffer of some megabytes first, without loss.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

FEW_TOKENS = 16
"""Up to here reading half as many bytes outweighs the slower product."""
FEW_INPUTS = 32
"""PyTorch's product of bfloat16 and int8 reads that many at a time, beyond the end of a row that isn't a multiple."""
WIDENED = 1 << 20
"""Numbers of an 8-bit weight that are widened at a time: they stay in the cache for the product."""


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


@functools.cache
def has_int8_product() -> bool:
    """Whether this build of PyTorch multiplies bfloat16 by int8."""
    x, weight = torch.ones(2, 32, dtype=torch.bfloat16), torch.eye(32, dtype=torch.int8)
    try:
        return torch.equal(torch._weight_int8pack_mm(x, weight, x[0]), x)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False


def _padded(x: Tensor) -> Tensor:
    n = padded_tokens(len(x))
    if n == len(x):
        return x
    room = x.new_zeros(n, x.shape[1])
    room[: len(x)] = x
    return room


class Linear:
    """One projection. `weight` is [outputs, inputs], `bias` [outputs] or None; x is [tokens, inputs] throughout.

    A weight of int8 comes with its `scale`, float32 [outputs]. Raises ValueError for one without, or the reverse.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None, *, packed: bool | None = None
    ) -> None:
        if (weight.dtype == torch.int8) != (scale is not None) or not (scale is not None or weight.is_floating_point()):
            raise ValueError(
                f"the weight is {weight.dtype} {'without' if scale is None else 'with'} a scale: on the CPU it must be "
                "int8 with a scale for each output, or of the model's dtype without"
            )
        self.bias = bias
        self.scale = scale
        self.packed = scale is None and (can_pack(weight.dtype) if packed is None else packed)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), None) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x W^T + b: [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(_padded(x), self.weight, self.bias, "none", [], "")[: len(x)]
        return self._product(x)

    def silu(self, x: Tensor) -> Tensor:
        """SiLU(x W^T + b): [tokens, outputs]."""
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(_padded(x), self.weight, self.bias, "swish", [], "")[: len(x)]
        return F.silu(self._product(x), inplace=True)

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x W^T + b) * other, elementwise: [tokens, outputs]."""
        if self.packed:
            binary = torch.ops.mkldnn._linear_pointwise.binary
            return binary(_padded(x), _padded(other), self.weight, self.bias, "mul")[: len(x)]
        return self._product(x).mul_(other)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """x W^T + b + residual: [tokens, outputs]."""
        if self.packed:
            binary = torch.ops.mkldnn._linear_pointwise.binary
            return binary(_padded(x), _padded(residual), self.weight, self.bias, "add")[: len(x)]
        return self._product(x).add_(residual)

    def _product(self, x: Tensor) -> Tensor:
        if self.scale is None:
            return F.linear(x, self.weight, self.bias)
        return linear_int8(x, self.weight, self.scale, self.bias)


def linear_int8(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [tokens, inputs], int8 weight [outputs, inputs], scale [outputs] -> (x W^T) * scale + b, in x's dtype."""
    outputs, inputs = weight.shape
    if x.dtype == torch.bfloat16 and len(x) <= FEW_TOKENS and inputs % FEW_INPUTS == 0 and has_int8_product():
        # With scales of its own dtype, which would round the weights once more: they are ones here.
        y = torch._weight_int8pack_mm(x.contiguous(), weight, x.new_ones(outputs))
        y = torch.mul(y, scale, out=y)
        return y if bias is None else y.add_(bias)
    padded = _padded(x) if (onednn := can_pack(x.dtype)) else x
    y = x.new_empty(len(x), outputs)
    rows = max(1, min(outputs, WIDENED // max(1, inputs)))
    buffer = x.new_empty(rows, inputs)
    for at in range(0, outputs, rows):
        part = slice(at, at + rows)
        wide = buffer[: len(weight[part])].copy_(weight[part])
        if onednn:
            product = torch.ops.mkldnn._linear_pointwise(padded, wide, None, "none", [], "")[: len(x)]
        else:
            product = F.linear(x, wide)
        torch.mul(product, scale[part], out=y[:, part])
    return y if bias is None else y.add_(bias)
