"""y = (x W8^T) * scale + b: a product with a weight in 8 bits, widened on the way and scaled in the sum.

W8 is int8 or float8_e4m3 [outputs, inputs] with one scale for each output, which leaves the sum: W = scale * W8. The
8-bit numbers are widened to x's type without loss (`matrix.widen`), so every product is that of a dequantised weight
whose scale comes last: y = fma(sum, scale, b) in float32, rounded once.

Tiling: y is computed transposed, [BLOCK_N outputs, BLOCK_M tokens] a program, BLOCK_K inputs loaded at a time through
shared memory. So W8 is the first operand, which the matrix units of sm_90 take from the registers it is widened in,
and tokens are the columns of an instruction: 16 of them suffice where the first operand needs 64 rows. K is never
split: few tokens get their parallelism from few outputs (16 to 64) a program. Many get tiles of up to [128, 256];
programs run in groups of GROUP_M tiles of tokens, so that a strip of W8 is shared in the second-level cache.

Bits: each number of y is one chain of sums as in `matmul_invariant`, whose docstring has the argument, so for one kind
of instruction they don't depend on the other tokens. With `invariant` the tiles that may be chosen are those of one
kind: on sm_90 and sm_100 BLOCK_N >= 64 with 4 warps or 8 (WGMMA, tcgen05). Without, fewer outputs a program (mma.sync)
may be chosen there for few tokens: more programs, each with less to load.

Moves: W8 (half the bytes of 16 bits), scale, x and y once; 2 m n k operations. Roofline: memory bandwidth (W8) up to
about a hundred tokens, then matrix units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.matmul_invariant import DTYPES, add_product, tile_of
from engine.kernels.matmul_quantized_tiles import TILES, shape_of
from engine.kernels.matrix import INTERPRETED, widen
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, choose

STORED = (torch.int8, torch.float8_e4m3fn)


@triton.jit
def matmul_quantized_kernel(
    x,
    weight,
    scale,
    bias,
    out,
    m,
    n,
    k,
    x_stride,
    weight_stride,
    out_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    row_tile, column_tile = tile_of(tl.program_id(0), tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N), GROUP_M)
    row, column = row_tile.to(tl.int64) * BLOCK_M, column_tile.to(tl.int64) * BLOCK_N
    rows, columns, inputs = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    x_tile, x_at = x + row * x_stride, rows[:, None] * x_stride + inputs[None, :]
    # Outputs that W8 lacks read its last one and aren't stored; rows that x lacks aren't read: often all but one.
    existing = tl.minimum(columns, (n - 1 - column).to(tl.int32))
    weight_tile, weight_at = weight + column * weight_stride, existing[:, None] * weight_stride + inputs[None, :]
    in_x = rows < m - row
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float64 if INTERPRETED else tl.float32)
    for first in tl.range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(weight_tile + weight_at)
            b = tl.load(x_tile + x_at, mask=in_x[:, None], other=0.0)
        else:
            in_k = (inputs < k - first)[None, :]
            # 0 in 8 bits; `other` would first be made float8, which some chips can't.
            a = tl.load(weight_tile + weight_at, mask=in_k)
            b = tl.load(x_tile + x_at, mask=in_x[:, None] & in_k, other=0.0)
        sums = add_product(sums, widen(a, b.dtype), b)
        weight_tile += BLOCK_K
        x_tile += BLOCK_K
    scales = tl.load(scale + column + existing)[:, None]
    in_columns = columns < n - column
    if bias is not None:
        biases = tl.load(bias + column + existing).to(tl.float32)[:, None]
        y = tl.fma(sums.to(tl.float32), scales, biases)
    else:
        y = sums.to(tl.float32) * scales
    to = out + row * out_stride + column + rows[None, :] * out_stride + columns[:, None]
    tl.store(to, y.to(out.dtype.element_ty), mask=in_x[None, :] & in_columns[:, None])


def matmul_quantized(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    invariant: bool = False,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """x [m, k] times scale * weight [n, k] transposed, plus bias [n] -> [m, n] in x's dtype; rows contiguous.

    x, bias, out: float32 (exact products, no tf32), float16 or bfloat16; weight: int8, or float8_e4m3fn from sm_89 on;
    scale: float32 [n]. Sums in float32. invariant: the bits of a row depend on that row, the weight, the scale and the
    bias alone (on one kind of chip). Raises ValueError for other dtypes or shapes.
    """
    _check(x, weight, scale, bias, out)
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device) if out is None else out
    tile = tile or choose(TILES, _shape(m, n, k, x.dtype, weight.dtype, invariant))
    grid = (triton.cdiv(m, tile.constants["BLOCK_M"]) * triton.cdiv(n, tile.constants["BLOCK_N"]),)
    strides = x.stride(0), weight.stride(0), out.stride(0)
    even = k % tile.constants["BLOCK_K"] == 0
    launch(matmul_quantized_kernel, grid, x, weight, scale, bias, out, m, n, k, *strides, tile=tile, EVEN_K=even)
    return out


def matmul_quantized_reference(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    invariant: bool = False,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The same in plain PyTorch, in whatever order; in float64 when given x in float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = (x.to(wide) @ weight.to(wide).T) * scale.to(wide)
    y = (y if bias is None else y + bias.to(wide)).to(x.dtype)
    return y if out is None else out.copy_(y)


def _check(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, out: Tensor | None) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, weight {list(weight.shape)}; they must be [m, k] and [n, k]")
    if x.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}; it must be float32, float16 or bfloat16")
    if weight.dtype not in STORED:
        raise ValueError(f"weight is {weight.dtype}; it must be int8 or float8_e4m3fn")
    if scale.shape != weight.shape[:1] or scale.dtype != torch.float32 or not scale.is_contiguous():
        raise ValueError(f"scale is {scale.dtype} {list(scale.shape)}; it must be float32 [{len(weight)}], contiguous")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype or not bias.is_contiguous()):
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; it must be {x.dtype} [{len(weight)}], contiguous")
    if out is not None and (out.shape != (len(x), len(weight)) or out.dtype != x.dtype):
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; it must be {x.dtype} {[len(x), len(weight)]}")
    for name, given in (("x", x), ("weight", weight), ("out", out)):
        if given is not None and given.stride(1) != 1:
            raise ValueError(f"{name} has strides {given.stride()}; its rows must be contiguous: call .contiguous()")


def _shape(m: int, n: int, k: int, dtype: torch.dtype, stored: torch.dtype, invariant: bool) -> Shape:
    return shape_of(m, n, k, *(str(one).removeprefix("torch.") for one in (dtype, stored)), invariant=invariant)


def work(m: int, n: int, k: int, *, bytes_per_number: int = 2) -> Work:
    """W8, its scales, x and y move once; a multiply and an add for each pair."""
    return Work(n * k + 4 * n + bytes_per_number * (m * k + m * n), 2 * m * n * k)


def cases() -> Iterator[Case]:
    """The projections of a 7B model for few and many tokens, and shapes that no tile divides."""
    bf16, int8, fp8 = torch.bfloat16, torch.int8, torch.float8_e4m3fn
    for m in (1, 32, 256, 8192):
        yield _case(m, 4096, 4096, bf16, int8)
    for m in (1, 8192):
        yield _case(m, 22016, 4096, bf16, int8, invariant=True)
        yield _case(m, 4096, 11008, bf16, fp8)
        yield _case(m, 4096, 4096, torch.float16, int8)
        yield _case(m, 768, 768, torch.float32, int8)
    yield _case(1, 896, 4864, torch.float16, fp8)
    yield _case(300, 1000, 1008, bf16, int8)


def _case(m: int, n: int, k: int, dtype: torch.dtype, stored: torch.dtype, *, invariant: bool = False) -> Case:
    def make(device: torch.device) -> Call:
        x = torch.randn(m, k, dtype=dtype, device=device)
        weight = torch.randint(-127, 128, (n, k), dtype=torch.int8, device=device)
        if stored != torch.int8:
            weight = weight.to(stored)
        scale = torch.full((n,), 1e-3, device=device)
        out = torch.empty(m, n, dtype=dtype, device=device)
        return lambda tile: matmul_quantized(x, weight, scale, invariant=invariant, out=out, tile=tile)

    shape = _shape(m, n, k, dtype, stored, invariant)
    label = f"m={m} n={n} k={k} {shape['dtype']} {shape['weight']}{' invariant' if invariant else ''}"
    capability = 80 if stored == torch.int8 else 89
    return Case(label, TILES, shape, make, matrix=dtype != torch.float32, capability=capability)
