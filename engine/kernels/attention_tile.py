"""One tile of queries over a range of keys: what extend attention and its deterministic twin compute alike.

A tile is BLOCK_M rows of a matrix: the tokens of one prompt row, each with the query heads of one group, because these
read the same K and V. With PACK heads a token, row m is token m // PACK and head m % PACK of the group. The keys are
walked BLOCK_N at a time, with the running maximum and sum of Milakov and Gimelshein (arXiv 1805.02867) as in
FlashAttention-2 (arXiv 2307.08691). Scores are kept in units of log2, so exponentials are exp2 and the scale costs
nothing: exp2(score * scale - top) is one multiply-add and one instruction of the special function unit.

The multiply-adds are written out: a row gets the same bits from a block whether the block was masked for it or not.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.kv_load import load_rows, load_scales, slots_of
from engine.kernels.matrix import dot, widen
from engine.kernels.paged import PagedKV

LOG2E = tl.constexpr(math.log2(math.e))
LEAST = tl.constexpr(-1.0e30)
"""Below every score, yet finite: the difference of two of them is a number."""


class ScoreScales(NamedTuple):
    """score in log2 = outer * f(inner * q.k), f(x) = tanh(x / 2 / log2 e) with a soft cap; without: outer * q.k."""

    inner: float
    outer: float


def score_scales(scale: float | None, head_dim: int, soft_cap: float) -> ScoreScales:
    """Of `scale` (None: 1 / sqrt(head_dim)) and cap * tanh(score / cap) if soft_cap > 0. Raises ValueError."""
    scale = head_dim**-0.5 if scale is None else scale
    if not scale > 0 or not soft_cap >= 0:
        raise ValueError(f"scale is {scale}, soft_cap {soft_cap}: scale must be above 0, soft_cap 0 (none) or above")
    if soft_cap:
        return ScoreScales(2 * LOG2E.value * scale / soft_cap, LOG2E.value * soft_cap)
    return ScoreScales(1.0, LOG2E.value * scale)


def heads_packed(group: int, block_m: int) -> int:
    """PACK: query heads of a group that one tile holds: all, or an even share of a group larger than the tile."""
    return -(-group // -(-group // block_m))


def scale_arguments(kv: PagedKV) -> tuple[Tensor | None, Tensor | None, int]:
    """k_scale, v_scale and the stride between kv heads, which must be the same for both. Raises ValueError."""
    if kv.k_scale is None or kv.v_scale is None:
        return None, None, 0
    if kv.k_scale.stride() != kv.v_scale.stride():
        raise ValueError(f"k_scale has strides {kv.k_scale.stride()}, v_scale {kv.v_scale.stride()}: make them alike")
    return kv.k_scale, kv.v_scale, kv.k_scale.stride(0)


@triton.jit
def attend(
    q, k, v, k_scale, v_scale, visible, top, total, acc, inner, outer,
    SOFT_CAP: tl.constexpr, QUANTISED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes one block of keys in: k, v [n, d] as stored, `visible` [m, n], top (log2), total [m], acc [m, d]."""
    scores = dot(q, tl.trans(widen(k, q.dtype)))
    if QUANTISED:
        scores = scores * k_scale[None, :]
    if SOFT_CAP:
        scores = 1.0 - 2.0 / (tl.exp2(scores * inner) + 1.0)
    if MASKED:
        scores = tl.where(visible, scores, LEAST)
    new_top = tl.maximum(top, tl.max(scores, 1) * outer)
    p = tl.exp2(tl.fma(scores, outer, -new_top[:, None]))
    if MASKED:
        p = tl.where(visible, p, 0.0)
    decay = tl.exp2(top - new_top)
    total = tl.fma(total, decay, tl.sum(p, 1))
    if QUANTISED:
        p = p * v_scale[None, :]
    acc = dot(p.to(q.dtype), widen(v, q.dtype), acc * decay[:, None])
    return new_top, total, acc


@triton.jit
def walk(
    q, top, total, acc, begin, end, position, low,
    table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SOFT_CAP: tl.constexpr, QUANTISED: tl.constexpr, LOW: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Takes in the keys begin .. end (begin a multiple of BLOCK_N, pointers those of one kv head and one page table).

    Not MASKED: end is such a multiple too and every query sees all of them. MASKED: a query sees those up to `position`
    [m], and from `low` [m] on if LOW.
    """
    column = tl.arange(0, BLOCK_N)
    for start in range(begin, end, BLOCK_N):
        keys = start + column
        if PAGE_SIZE % BLOCK_N == 0:
            slots = slots_of(table_ptr, start, end, PAGE_SIZE, False) + column
        else:
            slots = slots_of(table_ptr, keys, end, PAGE_SIZE, MASKED)
        present = keys < end
        k = load_rows(k_ptr, slots, present, HEAD_DIM, BLOCK_D, MASKED)
        v = load_rows(v_ptr, slots, present, HEAD_DIM, BLOCK_D, MASKED)
        k_scale = 0.0
        v_scale = 0.0
        if QUANTISED:
            k_scale = load_scales(k_scale_ptr, slots, present, MASKED)
            v_scale = load_scales(v_scale_ptr, slots, present, MASKED)
        visible = keys[None, :] <= position[:, None]
        if LOW:
            visible = visible & (keys[None, :] >= low[:, None])
        top, total, acc = attend(
            q, k, v, k_scale, v_scale, visible, top, total, acc, inner, outer, SOFT_CAP, QUANTISED, MASKED
        )
    return top, total, acc


@triton.jit
def walk_visible(
    q, top, total, acc, begin, full_from, full_to, end, position, low,
    table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
    PAGE_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
    SOFT_CAP: tl.constexpr, QUANTISED: tl.constexpr, LOW: tl.constexpr,
):  # fmt: skip
    """Takes in begin .. end, of which every query sees full_from .. full_to (multiples of BLOCK_N, as begin)."""
    if LOW:
        top, total, acc = walk(
            q, top, total, acc, begin, full_from, position, low,
            table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
            PAGE_SIZE, HEAD_DIM, BLOCK_N, BLOCK_D, SOFT_CAP, QUANTISED, LOW, True,
        )  # fmt: skip
    top, total, acc = walk(
        q, top, total, acc, full_from, full_to, position, low,
        table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
        PAGE_SIZE, HEAD_DIM, BLOCK_N, BLOCK_D, SOFT_CAP, QUANTISED, LOW, False,
    )  # fmt: skip
    return walk(
        q, top, total, acc, full_to, end, position, low,
        table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
        PAGE_SIZE, HEAD_DIM, BLOCK_N, BLOCK_D, SOFT_CAP, QUANTISED, LOW, True,
    )  # fmt: skip


@triton.jit
def tile_rows(
    m, row, token_0, head_block, n_keys_ptr, first_ptr,
    ITEM_TOKENS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Whom the rows m of a tile belong to, which begins at query token_0 of a row of the batch.

    Returns kv head, query [m] (packed), head [m], whether they exist [m], position [m] (rows that don't exist borrow
    query and position of the last one), the position of the tile's first query and one past that of its last.
    """
    HEAD_BLOCKS: tl.constexpr = (GROUP + PACK - 1) // PACK
    first = tl.load(first_ptr + row)
    n_queries = tl.load(first_ptr + row + 1) - first
    position_0 = tl.load(n_keys_ptr + row) - n_queries
    in_group = head_block % HEAD_BLOCKS * PACK + m % PACK
    token = token_0 + m // PACK
    n_tokens = tl.minimum(n_queries, token_0 + ITEM_TOKENS)
    exists = (token < n_tokens) & (in_group < GROUP)
    token = tl.maximum(tl.minimum(token, n_tokens - 1), 0)
    kv_head = head_block // HEAD_BLOCKS
    return (
        kv_head,
        first + token,
        kv_head * GROUP + in_group,
        exists,
        position_0 + token,
        position_0 + token_0,
        position_0 + n_tokens,
    )


@triton.jit
def load_queries(q_ptr, query, head, exists, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """[m, BLOCK_D], zero where there is nothing."""
    column = tl.arange(0, BLOCK_D)
    offsets = (query.to(tl.int64) * HEADS + head)[:, None] * HEAD_DIM + column[None, :]
    return tl.load(q_ptr + offsets, mask=exists[:, None] & (column < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def store_queries(
    out_ptr, values, query, head, exists, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """The way back."""
    column = tl.arange(0, BLOCK_D)
    offsets = (query.to(tl.int64) * HEADS + head)[:, None] * HEAD_DIM + column[None, :]
    tl.store(
        out_ptr + offsets,
        values.to(out_ptr.dtype.element_ty),
        mask=exists[:, None] & (column < HEAD_DIM)[None, :],
    )
