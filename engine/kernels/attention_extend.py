"""Extend attention: new tokens of many rows against their cached prefix and themselves, causal, in one launch.

out[t, h] = sum over keys j of softmax_j(scale * q[t, h] . k[j, h // group]) * v[j, h // group],   j <= position of t

as in FlashAttention-2 (arXiv 2307.08691), over a paged pool (arXiv 2309.06180). Optional: a sliding window (j > position
- window), a soft cap of the logits (cap * tanh(score / cap), arXiv 2408.00118), an 8-bit pool, and partial results of
prefixes that were read once for several rows, merged in by log-sum-exp (arXiv 2402.05099).

Tiling: one program computes BLOCK_M = tokens x heads of a group rows for one kv head; it keeps Q, and the output in
registers, and walks the keys from the first visible one, BLOCK_N at a time. Only the blocks at the diagonal (and at the
window's edge) are masked. The host plans the tiles of all rows as one list, the longest first, so that a ragged batch
ends evenly; programs of all kv heads of a tile are neighbours.

Bytes: Q and the output once, K and V of each row once per kv head (again for each tile, but out of the L2 cache).
Operations: 4 * head_dim for each visible pair of query head and key. A prompt of 8k has thousands of operations a byte:
the roofline is that of the matrix units, which also wait for an exp2 a pair; 60 % of the matrix ceiling is the aim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.attention_tile import (
    LEAST,
    heads_packed,
    load_queries,
    scale_arguments,
    score_scales,
    store_queries,
    tile_rows,
    walk_visible,
)
from engine.kernels.cases import Call, Case
from engine.kernels.kv_load import check_pool, gather_kv
from engine.kernels.launch import launch
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose

if TYPE_CHECKING:
    from engine.kernels.attention_merge import Parts


class ExtendItems(NamedTuple):
    """The tiles of a batch, each up to `block` queries of one row. `row` may hold -1 behind the items: nothing to do."""

    row: Tensor
    """int32 [items]"""
    first: Tensor
    """int32 [items]: the item's first query, counted within its row."""
    block: int


def extend_block(head_dim: int, dtype: torch.dtype, group: int, kv_dtype: torch.dtype | None = None) -> int:
    """Tokens of a row per item: what the tile chosen for this shape on the current GPU holds. kv_dtype None: dtype."""
    block_m = choose(TILES, _shape(head_dim, dtype, group, dtype if kv_dtype is None else kv_dtype)).constants[
        "BLOCK_M"
    ]
    return block_m // heads_packed(group, block_m)


def plan_extend(n_queries: np.ndarray, block: int, n_keys: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """row, first of `ExtendItems`, int32 [items], the items with most keys to walk first.

    n_queries, n_keys: [rows], new tokens and all keys of each row (None: rows have no prefix).
    """
    tiles = -(-n_queries // block)
    row = np.repeat(np.arange(len(n_queries)), tiles)
    first = (np.arange(len(row)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * block
    prefix = 0 if n_keys is None else (n_keys - n_queries)[row]
    order = np.argsort(-(prefix + np.minimum(first + block, n_queries[row])), kind="stable")
    return row[order].astype(np.int32), first[order].astype(np.int32)


_ARRAYS = ["item_row_ptr", "item_first_ptr", "tables_ptr", "table_ptr", "n_keys_ptr", "first_ptr", "n_shared_ptr"]


@triton.jit(do_not_specialize=["n_queries", "window"], do_not_specialize_on_alignment=[*_ARRAYS, "n_parts_ptr"])
def _extend(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr,
    item_row_ptr, item_first_ptr, tables_ptr, table_ptr, n_keys_ptr, first_ptr,
    n_shared_ptr, n_parts_ptr, part_out_ptr, part_lse_ptr,
    kv_stride, scale_stride, tables_stride, n_queries, window, inner, outer,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, ITEM_TOKENS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
    QUANTISED: tl.constexpr, SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    head_blocks: tl.constexpr = HEADS // GROUP * ((GROUP + PACK - 1) // PACK)
    item = tl.program_id(0) // head_blocks
    row = tl.load(item_row_ptr + item)
    if row < 0:
        return
    kv_head, query, head, exists, position, position_0, end = tile_rows(
        row, tl.load(item_first_ptr + item), tl.program_id(0) % head_blocks, n_keys_ptr, first_ptr,
        ITEM_TOKENS, GROUP, PACK, BLOCK_M,
    )  # fmt: skip
    table_ptr = tables_ptr + tl.load(table_ptr + row).to(tl.int64) * tables_stride
    k_ptr += kv_head.to(tl.int64) * kv_stride
    v_ptr += kv_head.to(tl.int64) * kv_stride
    if QUANTISED:
        k_scale_ptr += kv_head.to(tl.int64) * scale_stride
        v_scale_ptr += kv_head.to(tl.int64) * scale_stride

    low = position * 0
    if SHARED:
        low = tl.load(n_shared_ptr + query)
    if WINDOW:
        low = tl.maximum(low, position - window + 1)
    begin = 0
    full_from = 0
    full_to = (position_0 + 1) // BLOCK_N * BLOCK_N
    if SHARED or WINDOW:
        begin = tl.min(low, 0) // BLOCK_N * BLOCK_N
        full_from = tl.minimum((tl.max(low, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N, full_to)

    q = load_queries(q_ptr, query, head, exists, HEADS, HEAD_DIM, BLOCK_D)
    top = tl.full([BLOCK_M], LEAST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    top, total, acc = walk_visible(
        q, top, total, acc, begin, full_from, full_to, end, position, low,
        table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
        PAGE_SIZE, HEAD_DIM, BLOCK_N, BLOCK_D, SOFT_CAP, QUANTISED, SHARED or WINDOW,
    )  # fmt: skip

    if SHARED:
        n_parts = tl.load(n_parts_ptr + query)
        for part in range(0, tl.max(n_parts, 0)):
            counts = exists & (part < n_parts)
            at = query + part * n_queries
            lse = tl.load(part_lse_ptr + at * HEADS + head, mask=counts, other=LEAST) * 1.4426950408889634
            values = load_queries(part_out_ptr, at, head, counts, HEADS, HEAD_DIM, BLOCK_D)
            new_top = tl.maximum(top, lse)
            decay = tl.exp2(top - new_top)
            weight = tl.where(counts, tl.exp2(lse - new_top), 0.0)
            total = total * decay + weight
            acc = acc * decay[:, None] + values * weight[:, None]
            top = new_top

    store_queries(out_ptr, acc * (1.0 / total)[:, None], query, head, exists, HEADS, HEAD_DIM, BLOCK_D)


def attention_extend(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    items: ExtendItems,
    *,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    shared: SharedPrefixes | None = None,
    parts: Parts | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Attention of the packed queries q [queries, heads, head_dim] of all rows, like q; query head h reads kv head
    h // (heads / kv heads). Queries that no item covers are left alone in `out`.

    items: the work as `plan_extend` cuts it, `extend_block` tokens each (or less). scale: None is 1 / sqrt(head_dim).
    window: a query sees its own and the window - 1 keys before it; 0: all. soft_cap: of the logits; 0: none. shared, parts:
    keys before shared.n_shared[query] are left to shared.n_parts[query] partial results. out: where to write.
    Raises ValueError.
    """
    group = check_pool(q, kv)
    n_queries, heads, head_dim = q.shape
    tile = tile or choose(TILES, _shape(head_dim, q.dtype, group, kv.k.dtype))
    block_m = tile.constants["BLOCK_M"]
    pack = heads_packed(group, block_m)
    if not 1 <= items.block <= block_m // pack:
        raise ValueError(
            f"items of {items.block} tokens don't fit the tile's {block_m // pack}: plan with extend_block()"
        )
    if window < 0:
        raise ValueError(f"window is {window}: it must be 0 (none) or the number of visible keys")
    if (shared is None) != (parts is None) or (shared is not None and window):
        raise ValueError("shared and parts go together, and never with a window")
    out = torch.empty_like(q) if out is None else out
    if out.shape != q.shape or out.dtype != q.dtype or not out.is_contiguous():
        raise ValueError(f"out must be like q, contiguous {q.dtype} {list(q.shape)}, not {out.dtype} {list(out.shape)}")
    inner, outer = score_scales(scale, head_dim, soft_cap)
    k_scale, v_scale, scale_stride = scale_arguments(kv)
    launch(
        _extend,
        (items.row.shape[0] * kv.k.shape[0] * -(-group // pack),),
        *(q, kv.k, kv.v, k_scale, v_scale, out),
        *(items.row, items.first, rows.tables, rows.table, rows.n_keys, rows.first),
        *((None, None) if shared is None else (shared.n_shared, shared.n_parts)),
        *((None, None) if parts is None else (parts.out, parts.lse)),
        *(kv.k.stride(0), scale_stride, rows.tables.stride(0), n_queries, window, inner, outer),
        tile=tile,
        HEADS=heads,
        GROUP=group,
        PACK=pack,
        ITEM_TOKENS=items.block,
        PAGE_SIZE=kv.page_size,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        WINDOW=window > 0,
        SOFT_CAP=soft_cap > 0,
        QUANTISED=k_scale is not None,
        SHARED=shared is not None,
    )
    return out


def attention_extend_reference(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    items: ExtendItems | None = None,
    *,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    shared: SharedPrefixes | None = None,
    parts: Parts | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The same row by row in plain PyTorch, for all queries (items and tile don't matter)."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    out = torch.empty_like(q) if out is None else out
    group = q.shape[1] // kv.k.shape[0]
    first = rows.first.tolist()
    for row, n_keys in enumerate(rows.n_keys.tolist()):
        queries = slice(first[row], first[row + 1])
        k, v = gather_kv(kv, rows.tables[rows.table[row]], n_keys, dtype)
        k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
        scores = torch.einsum("thd,hkd->htk", q[queries].to(dtype), k) * (scale or q.shape[2] ** -0.5)
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        key = torch.arange(n_keys, device=q.device)
        position = n_keys - (queries.stop - queries.start) + torch.arange(queries.stop - queries.start, device=q.device)
        visible = key <= position[:, None]
        if window:
            visible &= key > position[:, None] - window
        if shared is not None:
            visible &= key >= shared.n_shared[queries, None]
        scores = scores.masked_fill(~visible, -torch.inf)
        lse = torch.logsumexp(scores, -1).T
        own = torch.einsum("htk,hkd->thd", torch.softmax(scores, -1).nan_to_num(0.0), v)
        if shared is not None and parts is not None:
            counts = torch.arange(parts.lse.shape[0], device=q.device)[:, None] < shared.n_parts[queries]
            lses = torch.where(counts[:, :, None], parts.lse[:, queries].to(dtype), -torch.inf)
            outs = torch.where(counts[:, :, None, None], parts.out[:, queries].to(dtype), 0.0)
            weights = torch.softmax(torch.cat((lse[None], lses)), 0)
            own = (weights[..., None] * torch.cat((own[None], outs))).sum(0)
        out[queries] = own.to(out.dtype)
    return out


def _shape(head_dim: int, dtype: torch.dtype, group: int, kv_dtype: torch.dtype) -> Shape:
    names = (str(dtype).removeprefix("torch."), str(kv_dtype).removeprefix("torch."))
    return {"head_dim": head_dim, "dtype": names[0], "group": group, "kv": names[1]}


def _default(capability: int, shape: Shape) -> Tile:
    return Tile({"BLOCK_M": 128, "BLOCK_N": 64}, 8, 2)


TILES = Tiles("attention_extend", _default, lambda capability, shape: [_default(capability, shape)])
