"""Extend attention: new tokens of many rows against their cached prefix and themselves, causal, in one launch.

out[t, h] = sum over keys j of softmax_j(scale * q[t, h] . k[j, h // group]) * v[j, h // group],   j <= position of t

as in FlashAttention-2 (arXiv 2307.08691), over a paged pool (arXiv 2309.06180). Optional: a sliding window
(j > position - window), a soft cap of the logits (cap * tanh(score / cap), arXiv 2408.00118), an 8-bit pool, and
partial results of prefixes that were read once for several rows, merged in by log-sum-exp (arXiv 2402.05099).

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
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.attention_example import HEADS, prompt_rows, shared_prefix
from engine.kernels.attention_merge import Parts
from engine.kernels.attention_tile import (
    LEAST,
    LOG2E,
    heads_packed,
    load_queries,
    scale_arguments,
    score_scales,
    store_queries,
    tile_rows,
    walk_visible,
)
from engine.kernels.cases import Call, Case
from engine.kernels.kv_load import check_out, check_pool, gather_kv
from engine.kernels.launch import launch
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose


class ExtendItems(NamedTuple):
    """The tiles of a batch, each up to `block` queries of one row. A row of -1 is no item: there is nothing to do."""

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
        tl.arange(0, BLOCK_M), row, tl.load(item_first_ptr + item), tl.program_id(0) % head_blocks,
        n_keys_ptr, first_ptr, ITEM_TOKENS, GROUP, PACK,
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

    top = tl.full([BLOCK_M], LEAST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if SHARED:  # what is there already comes first, while the registers are free
        n_parts = tl.load(n_parts_ptr + query)
        for part in range(0, tl.max(n_parts, 0)):
            at = query + part * n_queries
            counts = exists & (part < n_parts)
            lse = tl.load(part_lse_ptr + at.to(tl.int64) * HEADS + head, mask=counts, other=LEAST) * LOG2E
            counts = counts & (lse > LEAST)  # a part that saw no key may hold anything
            values = load_queries(part_out_ptr, at, head, counts, HEADS, HEAD_DIM, BLOCK_D)
            new_top = tl.maximum(top, lse)
            decay = tl.exp2(top - new_top)
            weight = tl.where(counts, tl.exp2(lse - new_top), 0.0)
            total = total * decay + weight
            acc = acc * decay[:, None] + values * weight[:, None]
            top = new_top
    q = load_queries(q_ptr, query, head, exists, HEADS, HEAD_DIM, BLOCK_D)
    top, total, acc = walk_visible(
        q, top, total, acc, begin, full_from, full_to, end, position, low,
        table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
        PAGE_SIZE, HEAD_DIM, BLOCK_N, BLOCK_D, SOFT_CAP, QUANTISED, SHARED or WINDOW,
    )  # fmt: skip
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    store_queries(out_ptr, acc * share[:, None], query, head, exists, HEADS, HEAD_DIM, BLOCK_D)


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
    window: a query sees its own and the window - 1 keys before it; 0: all. soft_cap: of the logits; 0: none.
    shared, parts: keys before shared.n_shared[query] are left to shared.n_parts[query] partial results.
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
    check_out(q, out)
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
            outs = torch.where(lses[..., None] > -torch.inf, parts.out[:, queries].to(dtype), 0.0)
            weights = torch.softmax(torch.cat((lse[None], lses)), 0)
            own = (weights[..., None] * torch.cat((own[None], outs))).sum(0)
        out[queries] = own.to(out.dtype)
    return out


def _shape(head_dim: int, dtype: torch.dtype, group: int, kv_dtype: torch.dtype) -> Shape:
    names = (str(dtype).removeprefix("torch."), str(kv_dtype).removeprefix("torch."))
    return {"head_dim": head_dim, "dtype": names[0], "group": group, "kv": names[1]}


BLOCKS_M = (16, 32, 64, 128)


def _default(capability: int, shape: Shape) -> Tile:
    """The largest that keeps everything in registers. An 8-bit pool is widened in registers and needs more of them."""
    head_dim, narrow = int(shape["head_dim"]), shape["kv"] != shape["dtype"]
    if shape["dtype"] == "float32":  # without matrix units
        if head_dim <= 128:
            return _tile(32, 32, 4, 2) if capability < 90 else _tile(32, 16, 8, 2)
        return _tile(16, 16, 4, 2)
    if 100 <= capability < 120:
        return _tile(128, 64, 8, 2 if head_dim <= 64 else 3) if head_dim <= 128 else _tile(64, 32, 8, 2)
    if 90 <= capability < 100:
        if head_dim <= 128:
            return _tile(128, 64, 8, 3)
        return _tile(64, 16, 8, 3) if narrow else _tile(64, 64, 8, 2)
    if head_dim <= 64:
        return _tile(64, 64, 4, 3)
    if head_dim <= 128:
        return _tile(64, 16, 4, 3) if narrow else _tile(64, 32, 4, 3)
    return _tile(64, 32, 8, 2)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    """All of the default's height, for that is what the items of a batch are cut for. Five stages or more keep two
    blocks of keys on their way."""
    default = _default(capability, shape)
    block_m = default.constants["BLOCK_M"]
    tiles = [
        _tile(block_m, block_n, warps, stages)
        for block_n in (16, 32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3, 5)
        if shape["dtype"] != "float32" or (block_n <= 32 and stages == 2)
    ]
    return [default, *(tile for tile in tiles if tile != default and _fits(tile, capability, shape))]


def _fits(tile: Tile, capability: int, shape: Shape) -> bool:
    """Whether q, the blocks of K and V under way and the scores find room in shared memory."""
    head_dim = triton.next_power_of_2(int(shape["head_dim"]))
    q_bytes, kv_bytes = (getattr(torch, str(shape[name])).itemsize for name in ("dtype", "kv"))
    block_m, block_n = tile.constants["BLOCK_M"], tile.constants["BLOCK_N"]
    in_place = capability >= 90 and shape["dtype"] != "float32"  # the matrix units read K and V in shared memory
    needed = q_bytes * block_m * (head_dim + block_n * (not in_place))
    needed += 2 * kv_bytes * block_n * head_dim * (tile.num_stages // 2 + in_place)
    scales_and_tables = 2048 if shape["kv"] == shape["dtype"] else 4096
    return needed + scales_and_tables <= {80: 163, 86: 99, 89: 99}.get(capability, 227) * 1024


def _tile(block_m: int, block_n: int, warps: int, stages: int) -> Tile:
    return Tile({"BLOCK_M": block_m, "BLOCK_N": block_n}, warps, stages)


TILES = Tiles("attention_extend", _default, _candidates)


def cases() -> Iterator[Case]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    int8, fp8 = torch.int8, torch.float8_e4m3fn
    for head_dim, group, dtype, kv_dtype, page_size, window, soft_cap, shared in (
        (128, 1, bf16, bf16, 16, 0, 0.0, False),
        (128, 4, bf16, bf16, 16, 0, 0.0, False),
        (128, 4, bf16, bf16, 1, 0, 0.0, False),
        (128, 7, fp16, fp16, 1, 0, 0.0, False),
        (64, 1, bf16, bf16, 16, 0, 0.0, False),
        (64, 7, bf16, bf16, 1, 0, 0.0, False),
        (80, 1, bf16, bf16, 16, 0, 0.0, False),
        (256, 4, bf16, bf16, 16, 0, 0.0, False),
        (256, 1, bf16, bf16, 1, 1024, 50.0, False),
        (128, 4, bf16, bf16, 16, 1024, 0.0, False),
        (128, 1, bf16, bf16, 1, 0, 50.0, False),
        (128, 1, bf16, bf16, 1, 0, 0.0, True),
        (64, 4, fp16, fp16, 16, 0, 0.0, True),
        (256, 4, bf16, bf16, 16, 0, 0.0, True),
        (128, 4, bf16, int8, 16, 0, 0.0, False),
        (128, 1, fp16, int8, 1, 1024, 0.0, False),
        (128, 1, bf16, int8, 16, 0, 0.0, True),
        (64, 4, bf16, int8, 1, 0, 0.0, False),
        (256, 4, bf16, int8, 16, 0, 0.0, False),
        (128, 4, bf16, fp8, 16, 0, 0.0, False),
        (256, 4, bf16, fp8, 1, 0, 50.0, False),
        (128, 4, fp32, fp32, 16, 0, 0.0, False),
        (64, 1, fp32, fp32, 1, 0, 0.0, True),
        (256, 1, fp32, fp32, 16, 1024, 0.0, False),
    ):
        shape = _shape(head_dim, dtype, group, kv_dtype)
        label = f"head_dim={head_dim} group={group} {shape['dtype']} {shape['kv']}-kv page={page_size}"
        label += f" window={window}" * (window > 0) + f" cap={soft_cap:g}" * (soft_cap > 0) + " shared" * shared
        yield Case(
            label,
            TILES,
            shape,
            partial(_example, head_dim, group, dtype, kv_dtype, page_size, window, soft_cap, shared),
            matrix=dtype != fp32,
            capability=89 if kv_dtype == fp8 else 80,
        )


def _example(
    head_dim: int,
    group: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    page_size: int,
    window: int,
    soft_cap: float,
    is_shared: bool,
    device: torch.device,
) -> Call:
    """Two prompts of 2k, after a prefix of 2k each."""
    q, kv, rows = prompt_rows(
        [(2048, 2048)] * 2,
        kv_heads=HEADS // group,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
    )
    shared, parts = shared_prefix(q, 2048) if is_shared else (None, None)
    items = items_by_block(2, 2048, group, device)
    out = torch.empty_like(q)

    def call(tile: Tile | None) -> Tensor:
        block_m = (tile or choose(TILES, _shape(head_dim, dtype, group, kv_dtype))).constants["BLOCK_M"]
        of_tile = items[block_m // heads_packed(group, block_m)]
        return attention_extend(
            q, kv, rows, of_tile, window=window, soft_cap=soft_cap, shared=shared, parts=parts, out=out, tile=tile
        )

    return call


def items_by_block(n_rows: int, n_new: int, group: int, device: torch.device) -> dict[int, ExtendItems]:
    """Equal rows cut for each height that a tile may have."""
    items = {}
    for block in {block_m // heads_packed(group, block_m) for block_m in BLOCKS_M}:
        row, first = plan_extend(np.full(n_rows, n_new), block)
        items[block] = ExtendItems(torch.from_numpy(row).to(device), torch.from_numpy(first).to(device), block)
    return items


def work(q: Tensor, kv: PagedKV, n_queries: Sequence[int], n_keys: Sequence[int], window: int = 0) -> Work:
    """Q and the output once, visible K and V (and scales) of each row once; 4 operations a pair and dimension.

    n_queries, n_keys: of each row.
    """
    pairs = visible = 0
    for new, keys in zip(n_queries, n_keys, strict=True):
        seen = range(keys - new + 1, keys + 1)
        pairs += sum(min(n, window) for n in seen) if window else (seen[0] + seen[-1]) * new // 2
        visible += min(keys, new + window - 1) if window else keys
    a_key = kv.k.shape[0] * (kv.k.shape[2] * kv.k.element_size() + (4 if kv.k_scale is not None else 0))
    return Work(2 * q.numel() * q.element_size() + 2 * visible * a_key, 4 * pairs * q.shape[1] * q.shape[2])
