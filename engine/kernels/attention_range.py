"""The loop that decoding and shared prefixes have in common: queries that all see the same range of paged keys.

    score_j = q k_j * scale            soft cap: cap * tanh(score_j / cap)
    out = sum_j softmax_j(score) v_j,  lse = log sum_j e^score_j     (online softmax, FlashAttention, arXiv 2205.14135)

No mask but the range's end: the keys past it are read as the last one again, with a weight of zero, so that no load
needs a mask of its own. Stages: a copy of K or V waits for the page table, so the compiler spends half of `num_stages`
on having the pages early: 5 stages keep two blocks of K and V in shared memory, 7 keep three, 3 and 4 but one.
The scales of a quantised pool multiply scores and probabilities, not the tiles: exact, and a head size cheaper.
"""

from __future__ import annotations

import triton
import triton.language as tl

from engine.kernels.kv_load import load_rows, load_scales, slots_of
from engine.kernels.matrix import dot, widen

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def attend_range(
    q,
    k_ptr,
    v_ptr,
    k_scale_ptr,
    v_scale_ptr,
    table_ptr,
    begin,
    end,
    scale,
    soft_cap,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    QUANTISED: tl.constexpr,
    CAPPED: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attention of q [M, D] to keys begin .. end - 1 (at least one) of one kv head, where the pointers point.

    Returns out [M, D] float32, normalised, and the natural-log lse [M].
    """
    M: tl.constexpr = q.shape[0]
    D: tl.constexpr = q.shape[1]
    acc = tl.zeros([M, D], tl.float32)
    top = tl.full([M], float("-inf"), tl.float32)  # of the scores times log2 e, as everything below
    total = tl.zeros([M], tl.float32)
    ahead = tl.arange(0, BLOCK_N)
    last = end - 1
    for start in range(begin, end, BLOCK_N):
        slots = slots_of(table_ptr, tl.minimum(start + ahead, last), end, PAGE_SIZE, False)
        k = widen(load_rows(k_ptr, slots, None, HEAD_DIM, D, False), q.dtype)
        v = widen(load_rows(v_ptr, slots, None, HEAD_DIM, D, False), q.dtype)
        scores = dot(q, tl.trans(k))
        if QUANTISED:
            scores *= load_scales(k_scale_ptr, slots, None, False)[None, :]
        if CAPPED:
            scores = (1.0 - 2.0 / (1.0 + tl.exp2(scores * (scale * 2.0 * LOG2_E / soft_cap)))) * (soft_cap * LOG2_E)
        else:
            scores *= scale * LOG2_E
        scores = tl.where((start + ahead < end)[None, :], scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.sum(weights, 1)
        top = higher
        if QUANTISED:
            weights *= load_scales(v_scale_ptr, slots, None, False)[None, :]
        acc = dot(weights.to(q.dtype), v, acc * shrink[:, None])
    return acc / total[:, None], (top + tl.log2(total)) * LN_2
