"""Root mean square norm (Zhang & Sennrich, arXiv 1910.07467), with the residual sum before it in the same pass.

    residual += x;  y = residual / sqrt(mean(residual^2) + eps) * w          (without a residual: of x)

Tiling: one program a row; the row stays in registers between the sum of squares and the product. Warps grow with the
row (16 numbers a thread), so that one token is as quick as may be and many tokens fill a processor. How a row is summed
depends on its size and dtype alone: its bits don't depend on the batch.
Moves: x and y once each, the residual twice, the weight once (then from the second-level cache); 4 operations a number,
none of them matrix products. Roofline: memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose

LARGEST = 16384
"""Numbers in a row that fit in the registers of one program."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def rms_norm_kernel(
    x, weight, residual, out, x_stride, residual_stride, out_stride, eps, SIZE: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < SIZE
    w = tl.load(weight + at, mask=inside, other=0.0)
    number = tl.load(x + row * x_stride + at, mask=inside, other=0.0)
    dtype = number.dtype
    if residual is not None:
        to = residual + row * residual_stride + at
        before = tl.load(to, mask=inside, other=0.0)
        number = (number.to(tl.float32) + before.to(tl.float32)).to(dtype)
        tl.store(to, number, mask=inside)
    wide = number.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / SIZE + eps)
    # Rounded before the weight is multiplied in, as models are trained and as the CPU computes.
    normed = (wide * scale).to(dtype).to(tl.float32)
    tl.store(out + row * out_stride + at, (normed * w.to(tl.float32)).to(dtype), mask=inside)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Norm of each row: x [tokens, size], weight [size] -> [tokens, size] in x's dtype.

    With `residual` [tokens, size], x is first added to it in place (rounded to its dtype) and the norm is of the sum.
    x, residual and out: one dtype (float32, float16, bfloat16), rows contiguous; `out` may be x.
    Raises ValueError for other dtypes or shapes, or rows of more than 16384 numbers.
    """
    _check(x, weight, residual, out)
    tokens, size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    tile = tile or choose(TILES, _shape(x))
    residual_stride = 0 if residual is None else residual.stride(0)
    strides = x.stride(0), residual_stride, out.stride(0)
    block = triton.next_power_of_2(size)
    launch(rms_norm_kernel, (tokens,), x, weight, residual, out, *strides, eps, tile=tile, SIZE=size, BLOCK=block)
    return out


def rms_norm_reference(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    residual: Tensor | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The same in plain PyTorch, for rows of any leading shape: [..., size]; in float64 when given float64."""
    if residual is not None:
        x = residual.add_(x)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    y = (wide * scale).to(x.dtype) * weight
    return y if out is None else out.copy_(y)


def _check(x: Tensor, weight: Tensor, residual: Tensor | None, out: Tensor | None) -> None:
    if x.dim() != 2 or x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; it must be float32, float16 or bfloat16 [tokens, size]")
    if x.shape[1] > LARGEST:
        raise ValueError(f"rows of {x.shape[1]} numbers; one program keeps at most {LARGEST} in its registers")
    if weight.shape != x.shape[1:] or not weight.is_contiguous():
        raise ValueError(
            f"weight is {list(weight.shape)}; it must be [{x.shape[1]}], contiguous, as x is {list(x.shape)}"
        )
    for name, given in (("x", x), ("residual", residual), ("out", out)):
        if given is None:
            continue
        if given.shape != x.shape or given.dtype != x.dtype:
            raise ValueError(f"{name} is {given.dtype} {list(given.shape)}; it must be as x: {x.dtype} {list(x.shape)}")
        if given.stride(1) != 1:
            raise ValueError(f"{name} has strides {given.stride()}; its rows must be contiguous: call .contiguous()")


def _shape(x: Tensor) -> Shape:
    return {"size": x.shape[1], "dtype": str(x.dtype).removeprefix("torch.")}


def _warps(size: int, numbers_a_thread: int) -> int:
    return min(max(triton.next_power_of_2(size) // (32 * numbers_a_thread), 1), 32)


def _default(capability: int, shape: Shape) -> Tile:
    return Tile({}, num_warps=_warps(int(shape["size"]), 16), num_stages=1)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    warps = {_warps(int(shape["size"]), numbers) for numbers in (8, 16, 32)}
    return [Tile({}, num_warps=n, num_stages=1) for n in sorted(warps)]


TILES = Tiles("rms_norm", _default, _candidates)


def work(tokens: int, size: int, *, residual: bool, bytes_per_number: int = 2) -> Work:
    """x is read and y written once, the residual read and written, the weight read once."""
    return Work(bytes_per_number * (tokens * size * (4 if residual else 2) + size))


def cases() -> Iterator[Case]:
    """Hidden sizes from 768 to the largest, powers of two and others."""
    for size in (768, 2048, 4096, 5120, 8192, LARGEST):
        yield _case(size, torch.bfloat16, has_residual=size != 768)
    for dtype in (torch.float16, torch.float32):
        yield _case(4096, dtype, has_residual=True)


def _case(size: int, dtype: torch.dtype, has_residual: bool, tokens: int = 4096) -> Case:
    def make(device: torch.device) -> Call:
        x = torch.randn(tokens, size, dtype=dtype, device=device)
        weight = torch.ones(size, dtype=dtype, device=device)
        residual = torch.zeros_like(x) if has_residual else None
        out = torch.empty_like(x)
        return lambda tile: rms_norm(x, weight, 1e-6, residual=residual, out=out, tile=tile)

    label = f"size={size} {str(dtype).removeprefix('torch.')}{' residual' if has_residual else ''}"
    return Case(label, TILES, _shape(torch.empty(0, size, dtype=dtype, device="meta")), make, matrix=False)
