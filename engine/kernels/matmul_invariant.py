"""y = x W^T + b whose rows have the same bits whatever else is in the batch: the projections of deterministic mode.

A sum in floating point depends on its order. A library picks the order (tiles, split K, the matrix instruction) by the
number of rows, so a request's logits change with its neighbours. Here each number of y is one chain

    y[i, j] = round(((0 + x[i, K0] . W[j, K0]) + x[i, K1] . W[j, K1]) + ... + b[j])

in float32, in one program, a link for each matrix instruction (K0, K1, ...: the inputs that one takes), of one kind for
all row counts. What m may change is which program computes a number, where in its tile it stands, how many columns an
instruction covers and how many links are loaded at a time. None of these enters the chain. So a tile may be chosen by m
as long as it stays with the chip's instruction: on sm_90 and sm_100 BLOCK_M >= 64 with 4 warps or 8 (WGMMA, tcgen05;
fewer rows would fall back to the warp's own mma.sync, which rounds otherwise), any multiple of 16 rows elsewhere
(mma.sync throughout), fused multiply-adds for float32. Rows that a tile lacks are zeros.

Tiling: [BLOCK_M, BLOCK_N] of y a program, BLOCK_K inputs loaded at a time through shared memory. K is never split: few
rows get their parallelism from few columns (16 to 64) a program, enough programs to stream W at full bandwidth on every
processor, without a workspace, a second launch, or a second set of accumulators. Many rows get tiles that keep the
matrix units busy; programs run in groups of GROUP_M tiles of rows, so that a strip of W is shared in the second-level
cache.
Moves: W, x and y once; 2 m n k operations. Roofline: memory bandwidth (W) up to some hundred rows, then matrix units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.matmul_invariant_tiles import MANY_ROWS, TILES, shape_of
from engine.kernels.matrix import INTERPRETED, dot
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, choose, current_gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def matmul_invariant_kernel(
    x,
    weight,
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
    # 64 bits for where a tile begins, 32 for places in it: fewer registers.
    x_tile, x_at = x + row * x_stride, rows[:, None] * x_stride + inputs[None, :]
    # Columns that W lacks read its last one and aren't stored; rows that x lacks aren't read: often all but one.
    existing = tl.minimum(columns, (n - 1 - column).to(tl.int32))
    weight_tile, weight_at = weight + column * weight_stride, existing[:, None] * weight_stride + inputs[None, :]
    in_x = (rows < m - row)[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRETED else tl.float32)
    for first in tl.range(0, k, BLOCK_K):
        if EVEN_K:
            a = tl.load(x_tile + x_at, mask=in_x, other=0.0)
            b = tl.load(weight_tile + weight_at)
        else:
            in_k = (inputs < k - first)[None, :]
            a = tl.load(x_tile + x_at, mask=in_x & in_k, other=0.0)
            b = tl.load(weight_tile + weight_at, mask=in_k, other=0.0)
        sums = add_product(sums, a, b)
        x_tile += BLOCK_K
        weight_tile += BLOCK_K
    sums = sums.to(tl.float32)
    in_columns = columns < n - column
    if bias is not None:
        sums += tl.load(bias + column + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    to = out + row * out_stride + column + rows[:, None] * out_stride + columns[None, :]
    tl.store(to, sums.to(out.dtype.element_ty), mask=in_x & in_columns[None, :])


@triton.jit
def matmul_invariant_bulk_kernel(
    x,
    weight,
    bias,
    out,
    m,
    n,
    k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PARTS: tl.constexpr,
):
    """The same through the bulk copy engine: x [m, k], weight [n, k] and out are descriptors, which read as zeros and
    drop what lies outside. One program a processor computes tile after tile and loads the next one's first inputs
    while it stores."""
    row_tiles, column_tiles = tl.cdiv(m, BLOCK_M), tl.cdiv(n, BLOCK_N)
    stored = tl.program_id(0) - tl.num_programs(0)
    for loaded in tl.range(tl.program_id(0), row_tiles * column_tiles, tl.num_programs(0), flatten=True):
        row_tile, column_tile = tile_of(loaded, row_tiles, column_tiles, GROUP_M)
        sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRETED else tl.float32)
        for first in tl.range(0, k, BLOCK_K):
            a = x.load([row_tile * BLOCK_M, first])
            b = weight.load([column_tile * BLOCK_N, first])
            sums = add_product(sums, a, b)
        # Counted apart, so that nothing of this tile stands in the way of the next one's loads.
        stored += tl.num_programs(0)
        row_tile, column_tile = tile_of(stored, row_tiles, column_tiles, GROUP_M)
        row, column = row_tile * BLOCK_M, column_tile * BLOCK_N
        y = sums.to(tl.float32)
        if bias is not None:
            columns = column + tl.arange(0, BLOCK_N)
            y += tl.load(bias + columns, mask=columns < n, other=0.0).to(tl.float32)[None, :]
        if PARTS == 1:
            out.store([row, column], y.to(out.dtype))
        else:
            left, right = tl.permute(tl.reshape(y, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)).split()
            out.store([row, column], left.to(out.dtype))
            out.store([row, column + BLOCK_N // 2], right.to(out.dtype))


@triton.jit
def add_product(sums, a, b):
    """sums + a b^T.

    The interpreter's products come from a library that picks their order by the tile's size: there they are taken in
    float64, which leaves nothing of the order behind once rounded.
    """
    if INTERPRETED:
        wide_a, wide_b = a.to(tl.float32).to(tl.float64), b.to(tl.float32).to(tl.float64)
        return tl.dot(wide_a, wide_b.T, sums, out_dtype=tl.float64)
    else:
        return dot(a, b.T, sums)


@triton.jit
def tile_of(program, row_tiles, column_tiles, GROUP_M: tl.constexpr):
    """Column after column of tiles within a group of GROUP_M rows of them: (row tile, column tile)."""
    in_group = GROUP_M * column_tiles
    first = program // in_group * GROUP_M
    height = tl.minimum(row_tiles - first, GROUP_M)
    return first + program % in_group % height, program % in_group // height


def matmul_invariant(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """x [m, k] times weight [n, k] transposed, plus bias [n] -> [m, n], all of one dtype, rows contiguous.

    float32 (exact products, no tf32), float16 or bfloat16; sums in float32. The bits of a row depend on that row, the
    weight and the bias alone (on one kind of chip). Raises ValueError for other dtypes or shapes.
    """
    _check(x, weight, bias, out)
    (m, k), n = x.shape, weight.shape[0]
    out = torch.empty(m, n, dtype=x.dtype, device=x.device) if out is None else out
    tile = tile or choose(TILES, _shape(m, n, k, x.dtype))
    if "PARTS" in tile.constants:
        if _has_descriptors(x, weight, out):
            _launch_bulk(x, weight, bias, out, tile)
            return out
        tile = MANY_ROWS[1]
    grid = (triton.cdiv(m, tile.constants["BLOCK_M"]) * triton.cdiv(n, tile.constants["BLOCK_N"]),)
    strides = x.stride(0), weight.stride(0), out.stride(0)
    even = k % tile.constants["BLOCK_K"] == 0
    launch(matmul_invariant_kernel, grid, x, weight, bias, out, m, n, k, *strides, tile=tile, EVEN_K=even)
    return out


def _launch_bulk(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tile: Tile) -> None:
    def descriptor(matrix: Tensor, rows: int, columns: int) -> TensorDescriptor:
        return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [rows, columns])

    (m, k), n = x.shape, weight.shape[0]
    block_m, block_n, block_k = (tile.constants[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
    of_x, of_weight = descriptor(x, block_m, block_k), descriptor(weight, block_n, block_k)
    of_out = descriptor(out, block_m, block_n // tile.constants["PARTS"])
    grid = (min(current_gpu().processors, triton.cdiv(m, block_m) * triton.cdiv(n, block_n)),)
    launch(matmul_invariant_bulk_kernel, grid, of_x, of_weight, bias, of_out, m, n, k, tile=tile)


def _has_descriptors(*matrices: Tensor) -> bool:
    """The bulk copy engine reads from addresses that are multiples of 16 bytes, row by row."""
    return all(
        matrix.numel() > 0 and matrix.data_ptr() % 16 == 0 and matrix.stride(0) * matrix.element_size() % 16 == 0
        for matrix in matrices
    )


def matmul_invariant_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor | None = None, tile: Tile | None = None
) -> Tensor:
    """The same product in plain PyTorch, in whatever order; in float64 when given float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = x.to(wide) @ weight.to(wide).T
    y = (y if bias is None else y + bias.to(wide)).to(x.dtype)
    return y if out is None else out.copy_(y)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> None:
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x is {list(x.shape)}, weight {list(weight.shape)}; they must be [m, k] and [n, k]")
    if x.dtype not in DTYPES or weight.dtype != x.dtype:
        raise ValueError(f"x is {x.dtype}, weight {weight.dtype}; both must be float32, float16 or bfloat16")
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != x.dtype or not bias.is_contiguous()):
        raise ValueError(f"bias is {bias.dtype} {list(bias.shape)}; it must be {x.dtype} [{len(weight)}], contiguous")
    if out is not None and (out.shape != (len(x), len(weight)) or out.dtype != x.dtype):
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; it must be {x.dtype} {[len(x), len(weight)]}")
    for name, given in (("x", x), ("weight", weight), ("out", out)):
        if given is not None and given.stride(1) != 1:
            raise ValueError(f"{name} has strides {given.stride()}; its rows must be contiguous: call .contiguous()")


def _shape(m: int, n: int, k: int, dtype: torch.dtype) -> Shape:
    return shape_of(m, n, k, str(dtype).removeprefix("torch."))


def work(m: int, n: int, k: int, *, bytes_per_number: int = 2) -> Work:
    """W, x and y move once; a multiply and an add for each pair."""
    return Work(bytes_per_number * (n * k + m * k + m * n), 2 * m * n * k)


def cases() -> Iterator[Case]:
    """The projections of a 7B model for few and many rows, and shapes that no tile divides."""
    for m in (1, 32, 128, 8192):
        for n, k in ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008)):
            yield _case(m, n, k, torch.bfloat16)
    yield _case(1, 896, 4864, torch.bfloat16)
    yield _case(8192, 4096, 4096, torch.float16)
    yield _case(300, 1000, 1008, torch.bfloat16)
    for m in (1, 2048):
        yield _case(m, 768, 768, torch.float32)


def _case(m: int, n: int, k: int, dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Call:
        x = torch.randn(m, k, dtype=dtype, device=device)
        weight = torch.randn(n, k, dtype=dtype, device=device)
        out = torch.empty(m, n, dtype=dtype, device=device)
        return lambda tile: matmul_invariant(x, weight, out=out, tile=tile)

    shape = _shape(m, n, k, dtype)
    return Case(f"m={m} n={n} k={k} {shape['dtype']}", TILES, shape, make, matrix=dtype != torch.float32)
