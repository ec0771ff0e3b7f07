"""The two products of a mixture of experts, over tiles of pairs that belong to one expert each, and the sum after them.

    hidden[i] = SiLU(gate_e x[token]) * (up_e x[token])       rows gathered, the activation in the epilogue
    part[pair] = share * (down_e hidden[i])                   rows scattered back to where their pair belongs
    y[token] = (part[token, 0] + part[token, 1]) + ...        always in this order

Gate and up of a number are neighbouring columns of one product: the matrix unit leaves both with the same thread.
Weights of 8 bits are cast to x's type as they are loaded; their scales multiply the float32 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.matmul_invariant import add_product, tile_of
from engine.kernels.matrix import INTERPRETED, narrow, widen


@triton.jit(do_not_specialize=["n_tiles"])
def gate_up_kernel(
    x,
    weight,
    scale,
    order,
    tiles,
    out,
    n_tiles,
    k,
    inner,
    hidden,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    row_tile, column_tile = tile_of(tl.program_id(0), n_tiles, tl.cdiv(2 * inner, BLOCK_N), GROUP_M)
    expert = tl.load(tiles + 3 * row_tile)
    if expert < 0:
        return
    slots = tl.load(tiles + 3 * row_tile + 1) + tl.arange(0, BLOCK_M)
    in_expert = slots < tl.load(tiles + 3 * row_tile + 2)
    tokens = tl.load(order + slots, mask=in_expert, other=0) // k

    # Of columns that the expert lacks its last are read, and not stored.
    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    existing = tl.minimum(columns // 2, inner - 1) + columns % 2 * inner
    outputs = (expert * (2 * inner) + existing).to(tl.int64)
    rows, weights = x + tokens[:, None].to(tl.int64) * x_stride, weight + outputs[:, None] * hidden
    sums = product(rows, in_expert[:, None], weights, hidden, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    if scale is not None:
        sums *= tl.load(scale + outputs)[None, :]
    gate, up = tl.split(tl.reshape(sums, (BLOCK_M, BLOCK_N // 2, 2)))
    y = gate * tl.sigmoid(gate) * up
    at = column_tile * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    to = out + slots[:, None].to(tl.int64) * inner + at[None, :]
    tl.store(to, narrow(y, out.dtype.element_ty), mask=in_expert[:, None] & (at < inner)[None, :])


@triton.jit(do_not_specialize=["n_tiles"])
def down_kernel(
    x,
    weight,
    scale,
    shares,
    order,
    tiles,
    out,
    n_tiles,
    inner,
    hidden,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    row_tile, column_tile = tile_of(tl.program_id(0), n_tiles, tl.cdiv(hidden, BLOCK_N), GROUP_M)
    expert = tl.load(tiles + 3 * row_tile)
    if expert < 0:
        return
    slots = tl.load(tiles + 3 * row_tile + 1) + tl.arange(0, BLOCK_M)
    in_expert = slots < tl.load(tiles + 3 * row_tile + 2)

    columns = column_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    outputs = (expert * hidden + tl.minimum(columns, hidden - 1)).to(tl.int64)
    rows, weights = x + slots[:, None].to(tl.int64) * inner, weight + outputs[:, None] * inner
    sums = product(rows, in_expert[:, None], weights, inner, BLOCK_M, BLOCK_N, BLOCK_K, EVEN_K)
    if scale is not None:
        sums *= tl.load(scale + outputs)[None, :]
    pairs = tl.load(order + slots, mask=in_expert, other=0)
    sums *= tl.load(shares + pairs, mask=in_expert, other=0.0)[:, None]
    to = out + pairs[:, None].to(tl.int64) * hidden + columns[None, :]
    tl.store(to, narrow(sums, out.dtype.element_ty), mask=in_expert[:, None] & (columns < hidden)[None, :])


@triton.jit
def product(
    rows,
    in_rows,
    weights,
    inputs,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """[BLOCK_M, BLOCK_N] in float32. rows: where each row begins [BLOCK_M, 1]; weights: where each output's weights
    begin [BLOCK_N, 1]; in_rows: which rows exist, the others are zeros."""
    at = tl.arange(0, BLOCK_K)
    a_at, b_at = rows + at[None, :], weights + at[None, :]
    dtype: tl.constexpr = rows.dtype.element_ty
    sums = tl.zeros((BLOCK_M, BLOCK_N), tl.float64 if INTERPRETED else tl.float32)
    for first in tl.range(0, inputs, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_at, mask=in_rows, other=0.0)
            b = tl.load(b_at)
        else:
            in_inputs = (at < inputs - first)[None, :]
            a = tl.load(a_at, mask=in_rows & in_inputs, other=0.0)
            b = tl.load(b_at, mask=in_inputs, other=0.0)
        sums = add_product(sums, a, widen(b, dtype))
        a_at += BLOCK_K
        b_at += BLOCK_K
    return sums.to(tl.float32)


@triton.jit
def sum_kernel(
    parts,
    chosen,
    out,
    experts,
    hidden,
    out_stride,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Where a token's expert doesn't exist, no part was written: what the token gets isn't a number."""
    blocks = tl.cdiv(hidden, BLOCK)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    y = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(K):
        expert = tl.load(chosen + token * K + j)
        part = tl.load(parts + (token * K + j) * hidden + at, mask=at < hidden, other=0.0).to(tl.float32)
        y += tl.where((expert >= 0) & (expert < experts), part, float("nan"))
    tl.store(out + token * out_stride + at, narrow(y, out.dtype.element_ty), mask=at < hidden)
