"""Deterministic attention: a query's result has the same bits whatever else is in the batch, however its prompt was cut
into chunks and whether its keys were computed now or cached.

The formula is that of `attention_extend`. Floating-point sums depend on their order, so here the order depends on the
keys' absolute positions alone. Keys are cut at the multiples of SPLIT; each split's softmax is computed by itself, over
blocks at the multiples of BLOCK_N, from a fresh state (top lowest, sums zero); the splits are merged by position:

    top' = max(top, top_s);  sum' = sum * 2^(top - top') + sum_s * 2^(top_s - top')        (so too for the output)

A split or block that a query doesn't see leaves its state as it was, bit for bit, so it doesn't matter which ones the
other queries of its tile need. A few programs (decode) work on the splits in parallel, leave their states in memory and
a second launch merges them; many (prefill) take one split after the other and merge in registers, with the same
arithmetic, every multiply-add written out. There is one tile for a GPU, head size and types, never one for a batch:
other shapes of matrix instructions may add in another order.

Tiling: as extend attention, with a second accumulator for the merged splits, so at most half of the rows a thread. The
sums of the parallel way cost 2 * 4 * (head_dim + 2) bytes a query, head and split. Bytes and operations else, and the
roofline, are those of extend attention for prompts and of the memory for decoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.attention_example import HEADS, prompt_rows
from engine.kernels.attention_extend import ExtendItems, attention_extend_reference, items_by_block, work
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
from engine.kernels.kv_load import check_out, check_pool
from engine.kernels.launch import launch
from engine.kernels.paged import PagedKV, Rows
from engine.kernels.tiles import Shape, Tile, Tiles, choose, current_gpu

__all__ = ["attention_fixed_split", "attention_fixed_split_reference", "fixed_block", "work"]
PROGRAMS_A_PROCESSOR = 4
"""With fewer programs than this the splits are worked on in parallel. It changes time, never bits."""

MERGE_M = 16
"""Rows of a tile that a program of the merge takes."""


def fixed_block(head_dim: int, dtype: torch.dtype, group: int, kv_dtype: torch.dtype | None = None) -> int:
    """Tokens of a row per item, for `plan_extend`. kv_dtype None: dtype."""
    block_m = choose(TILES, _shape(head_dim, dtype, dtype if kv_dtype is None else kv_dtype)).constants["BLOCK_M"]
    return block_m // heads_packed(group, block_m)


@triton.jit
def _merge(top, total, acc, split_top, split_total, split_acc):
    """The merged splits and the next one."""
    new_top = tl.maximum(top, split_top)
    decay = tl.exp2(top - new_top)
    weight = tl.exp2(split_top - new_top)
    total = tl.fma(total, decay, split_total * weight)
    acc = tl.fma(acc, decay[:, None] + tl.zeros_like(acc), split_acc * weight[:, None])
    return new_top, total, acc


@triton.jit
def _visible_range(position_0, end, window, WINDOW: tl.constexpr, BLOCK_N: tl.constexpr):
    """begin, full_from, full_to of `walk_visible` for a tile with queries at position_0 .. end."""
    begin = 0 * end
    full_from = 0 * end
    full_to = (position_0 + 1) // BLOCK_N * BLOCK_N
    if WINDOW:
        begin = tl.maximum(position_0 + 1 - window, 0) // BLOCK_N * BLOCK_N
        full_from = (tl.maximum(end - window, 0) + BLOCK_N - 1) // BLOCK_N * BLOCK_N
        full_from = tl.minimum(full_from, full_to)
    return begin, full_from, full_to


_ARRAYS = ["item_row_ptr", "item_first_ptr", "tables_ptr", "table_ptr", "n_keys_ptr", "first_ptr"]


@triton.jit(do_not_specialize=["n_queries", "n_splits", "window"], do_not_specialize_on_alignment=_ARRAYS)
def _fixed(
    q_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, out_ptr, split_top_ptr, split_total_ptr, split_acc_ptr,
    item_row_ptr, item_first_ptr, tables_ptr, table_ptr, n_keys_ptr, first_ptr,
    kv_stride, scale_stride, tables_stride, n_queries, n_splits, window, inner, outer,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, ITEM_TOKENS: tl.constexpr, PAGE_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, SOFT_CAP: tl.constexpr,
    QUANTISED: tl.constexpr, PARALLEL: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    head_blocks: tl.constexpr = HEADS // GROUP * ((GROUP + PACK - 1) // PACK)
    of_item = head_blocks
    if PARALLEL:
        of_item = head_blocks * n_splits
    item = tl.program_id(0) // of_item
    row = tl.load(item_row_ptr + item)
    if row < 0:
        return
    kv_head, query, head, exists, position, position_0, end = tile_rows(
        tl.arange(0, BLOCK_M), row, tl.load(item_first_ptr + item), tl.program_id(0) % head_blocks,
        n_keys_ptr, first_ptr, ITEM_TOKENS, GROUP, PACK,
    )  # fmt: skip
    begin, full_from, full_to = _visible_range(position_0, end, window, WINDOW, BLOCK_N)
    low = position + 1 - window
    table_ptr = tables_ptr + tl.load(table_ptr + row).to(tl.int64) * tables_stride
    k_ptr += kv_head.to(tl.int64) * kv_stride
    v_ptr += kv_head.to(tl.int64) * kv_stride
    if QUANTISED:
        k_scale_ptr += kv_head.to(tl.int64) * scale_stride
        v_scale_ptr += kv_head.to(tl.int64) * scale_stride
    first_split = begin // SPLIT
    last_split = (end + SPLIT - 1) // SPLIT
    split_of_program = 0
    if PARALLEL:
        split_of_program = tl.program_id(0) % of_item // head_blocks
        first_split += split_of_program
        if first_split >= last_split:
            return
        last_split = first_split + 1

    q = load_queries(q_ptr, query, head, exists, HEADS, HEAD_DIM, BLOCK_D)
    top = tl.full([BLOCK_M], LEAST, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for split in range(first_split, last_split):
        split_from = tl.maximum(split * SPLIT, begin)
        split_to = split * SPLIT + SPLIT
        split_full_to = tl.minimum(tl.maximum(full_to, split_from), split_to)
        split_full_from = tl.minimum(tl.maximum(full_from, split_from), split_full_to)
        split_top, split_total, split_acc = walk_visible(
            q, tl.full([BLOCK_M], LEAST, tl.float32), tl.zeros([BLOCK_M], tl.float32),
            tl.zeros([BLOCK_M, BLOCK_D], tl.float32),
            split_from, split_full_from, split_full_to, tl.minimum(split_to, end), position, low,
            table_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, inner, outer,
            PAGE_SIZE, HEAD_DIM, BLOCK_N, BLOCK_D, SOFT_CAP, QUANTISED, WINDOW,
        )  # fmt: skip
        if PARALLEL:
            top, total, acc = split_top, split_total, split_acc
        else:
            top, total, acc = _merge(top, total, acc, split_top, split_total, split_acc)
    if PARALLEL:
        at = split_of_program * n_queries + query
        tl.store(split_top_ptr + at.to(tl.int64) * HEADS + head, top, mask=exists)
        tl.store(split_total_ptr + at.to(tl.int64) * HEADS + head, total, mask=exists)
        store_queries(split_acc_ptr, acc, at, head, exists, HEADS, HEAD_DIM, BLOCK_D)
    else:
        share = 1.0 / tl.where(total > 0.0, total, 1.0)
        store_queries(out_ptr, acc * share[:, None], query, head, exists, HEADS, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=["n_queries", "window"], do_not_specialize_on_alignment=_ARRAYS[:2] + _ARRAYS[4:])
def _fixed_merge(
    split_top_ptr, split_total_ptr, split_acc_ptr, out_ptr, item_row_ptr, item_first_ptr, n_keys_ptr, first_ptr,
    n_queries, window,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PACK: tl.constexpr, ITEM_TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLIT: tl.constexpr,
    MERGE_M: tl.constexpr,
):  # fmt: skip
    """Rows program_id(1) * MERGE_M .. of an item's tile."""
    head_blocks: tl.constexpr = HEADS // GROUP * ((GROUP + PACK - 1) // PACK)
    item = tl.program_id(0) // head_blocks
    row = tl.load(item_row_ptr + item)
    if row < 0:
        return
    _, query, head, exists, _, position_0, end = tile_rows(
        tl.program_id(1) * MERGE_M + tl.arange(0, MERGE_M), row, tl.load(item_first_ptr + item),
        tl.program_id(0) % head_blocks, n_keys_ptr, first_ptr, ITEM_TOKENS, GROUP, PACK,
    )  # fmt: skip
    if position_0 + tl.program_id(1) * MERGE_M // PACK >= end:
        return
    begin, _, _ = _visible_range(position_0, end, window, WINDOW, BLOCK_N)
    top = tl.full([MERGE_M], LEAST, tl.float32)
    total = tl.zeros([MERGE_M], tl.float32)
    acc = tl.zeros([MERGE_M, BLOCK_D], tl.float32)
    for split in range(0, (end + SPLIT - 1) // SPLIT - begin // SPLIT):
        at = query + split * n_queries
        split_top = tl.load(split_top_ptr + at.to(tl.int64) * HEADS + head, mask=exists, other=LEAST)
        split_total = tl.load(split_total_ptr + at.to(tl.int64) * HEADS + head, mask=exists, other=0.0)
        split_acc = load_queries(split_acc_ptr, at, head, exists, HEADS, HEAD_DIM, BLOCK_D)
        top, total, acc = _merge(top, total, acc, split_top, split_total, split_acc)
    share = 1.0 / tl.where(total > 0.0, total, 1.0)
    store_queries(out_ptr, acc * share[:, None], query, head, exists, HEADS, HEAD_DIM, BLOCK_D)


def attention_fixed_split(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    items: ExtendItems,
    *,
    max_keys: int | None = None,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    out: Tensor | None = None,
    tile: Tile | None = None,
    parallel: bool | None = None,
) -> Tensor:
    """Attention of the packed queries q [queries, heads, head_dim] of all rows, prompts and decodes alike, like q.

    items: as `plan_extend` cuts the rows, `fixed_block` tokens each (or less). max_keys: no row has more keys (None: as
    many as a page table holds). scale, window, soft_cap, out: as in `attention_extend`. parallel: whether splits are
    worked on side by side; None: where the items alone leave processors idle. Raises ValueError.
    """
    group = check_pool(q, kv)
    n_queries, heads, head_dim = q.shape
    tile = tile or choose(TILES, _shape(head_dim, q.dtype, kv.k.dtype))
    block_m, block_n, split = (tile.constants[name] for name in ("BLOCK_M", "BLOCK_N", "SPLIT"))
    pack = heads_packed(group, block_m)
    if not 1 <= items.block <= block_m // pack:
        raise ValueError(
            f"items of {items.block} tokens don't fit the tile's {block_m // pack}: plan with fixed_block()"
        )
    if split % block_n:
        raise ValueError(f"SPLIT is {split}: it must be a multiple of BLOCK_N = {block_n}")
    if window < 0:
        raise ValueError(f"window is {window}: it must be 0 (none) or the number of visible keys")
    out = torch.empty_like(q) if out is None else out
    check_out(q, out)
    inner, outer = score_scales(scale, head_dim, soft_cap)
    k_scale, v_scale, scale_stride = scale_arguments(kv)
    programs = items.row.shape[0] * kv.k.shape[0] * -(-group // pack)
    n_splits = -(-(rows.tables.shape[1] * kv.page_size if max_keys is None else max_keys) // split)
    if window:
        n_splits = min(n_splits, -(-(window + items.block + block_n) // split) + 1)
    if parallel is None:
        parallel = n_splits > 1 and programs < PROGRAMS_A_PROCESSOR * current_gpu().processors
    state = (n_splits if parallel else 0, n_queries, heads)
    tops, totals = (torch.empty(state, dtype=torch.float32, device=q.device) for _ in range(2))
    accs = torch.empty(*state, head_dim, dtype=torch.float32, device=q.device)
    constants = {
        "HEADS": heads,
        "GROUP": group,
        "PACK": pack,
        "ITEM_TOKENS": items.block,
        "HEAD_DIM": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "WINDOW": window > 0,
    }
    launch(
        _fixed,
        (programs * (n_splits if parallel else 1),),
        *(q, kv.k, kv.v, k_scale, v_scale, out, tops, totals, accs),
        *(items.row, items.first, rows.tables, rows.table, rows.n_keys, rows.first),
        *(kv.k.stride(0), scale_stride, rows.tables.stride(0), n_queries, n_splits, window, inner, outer),
        tile=tile,
        PAGE_SIZE=kv.page_size,
        SOFT_CAP=soft_cap > 0,
        QUANTISED=k_scale is not None,
        PARALLEL=parallel,
        **constants,
    )
    if parallel:
        launch(
            _fixed_merge,
            (programs, -(-block_m // MERGE_M)),
            *(tops, totals, accs, out, items.row, items.first, rows.n_keys, rows.first, n_queries, window),
            tile=Tile({**tile.constants, "MERGE_M": MERGE_M}, 4, 2),
            **constants,
        )
    return out


def attention_fixed_split_reference(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    items: ExtendItems | None = None,
    *,
    max_keys: int | None = None,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    out: Tensor | None = None,
    tile: Tile | None = None,
    parallel: bool | None = None,
) -> Tensor:
    """The same in plain PyTorch, which has bits of its own: `attention_extend_reference`."""
    return attention_extend_reference(q, kv, rows, scale=scale, window=window, soft_cap=soft_cap, out=out)


def _shape(head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype) -> Shape:
    names = (str(dtype).removeprefix("torch."), str(kv_dtype).removeprefix("torch."))
    return {"head_dim": head_dim, "dtype": names[0], "kv": names[1]}


def _default(capability: int, shape: Shape) -> Tile:
    """The largest that keeps both accumulators in registers."""
    head_dim, narrow = int(shape["head_dim"]), shape["kv"] != shape["dtype"]
    if shape["dtype"] == "float32":  # without matrix units
        if head_dim <= 128:
            return _tile(16, 16, 4, 1) if capability in (86, 89) else _tile(32, 16, 8, 2)
        return _tile(16, 16, 8, 1)
    if 100 <= capability < 120:
        if head_dim <= 128:
            return _tile(64, 64, 4, 3) if head_dim <= 64 else _tile(64, 32, 8, 2)
        return _tile(64, 16, 8, 3) if narrow else _tile(64, 32, 8, 1)
    if 90 <= capability < 100:
        if head_dim <= 128:
            return _tile(64, 64, 4, 3) if head_dim <= 64 else _tile(64, 32, 4, 3)
        return _tile(64, 16, 8, 1) if narrow else _tile(64, 32, 8, 2)
    if head_dim <= 128:
        return _tile(64, 32, 4, 3) if head_dim <= 64 else _tile(64, 32, 8, 3)
    return _tile(32, 32, 8, 2)


def _tile(block_m: int, block_n: int, warps: int, stages: int, split: int = 512) -> Tile:
    return Tile({"BLOCK_M": block_m, "BLOCK_N": block_n, "SPLIT": split}, warps, stages)


TILES = Tiles("attention_fixed", _default, lambda capability, shape: [_default(capability, shape)])


def cases() -> Iterator[Case]:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    int8, fp8 = torch.int8, torch.float8_e4m3fn
    for head_dim, group, dtype, kv_dtype, page_size, window, soft_cap, n_new in (
        (128, 1, bf16, bf16, 16, 0, 0.0, 2048),
        (128, 1, bf16, bf16, 16, 0, 0.0, 1),
        (128, 4, bf16, bf16, 1, 0, 0.0, 2048),
        (128, 4, bf16, bf16, 1, 0, 0.0, 1),
        (128, 7, fp16, fp16, 16, 1024, 50.0, 2048),
        (64, 7, bf16, bf16, 1, 0, 0.0, 2048),
        (80, 1, bf16, bf16, 16, 0, 0.0, 1),
        (256, 4, bf16, bf16, 16, 0, 50.0, 2048),
        (256, 1, bf16, bf16, 16, 1024, 0.0, 1),
        (128, 4, bf16, int8, 16, 0, 0.0, 2048),
        (128, 1, fp16, int8, 1, 1024, 0.0, 1),
        (256, 4, bf16, int8, 16, 0, 0.0, 2048),
        (128, 4, bf16, fp8, 16, 0, 0.0, 2048),
        (128, 4, fp32, fp32, 16, 0, 0.0, 2048),
        (64, 1, fp32, fp32, 1, 0, 0.0, 1),
        (256, 1, fp32, fp32, 16, 1024, 0.0, 2048),
    ):
        shape = _shape(head_dim, dtype, kv_dtype)
        label = f"head_dim={head_dim} group={group} {shape['dtype']} {shape['kv']}-kv page={page_size}"
        label += f" window={window}" * (window > 0) + f" cap={soft_cap:g}" * (soft_cap > 0)
        yield Case(
            label + (" decode" if n_new == 1 else " prefill"),
            TILES,
            shape,
            partial(_example, head_dim, group, dtype, kv_dtype, page_size, window, soft_cap, n_new),
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
    n_new: int,
    device: torch.device,
) -> Call:
    """Four rows of 4k keys, of which n_new are new."""
    q, kv, rows = prompt_rows(
        [(4096 - n_new, n_new)] * 4,
        kv_heads=HEADS // group,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
    )
    items = items_by_block(4, n_new, group, device)
    out = torch.empty_like(q)

    def call(tile: Tile | None) -> Tensor:
        block_m = (tile or choose(TILES, _shape(head_dim, dtype, kv_dtype))).constants["BLOCK_M"]
        of_tile = items[block_m // heads_packed(group, block_m)]
        return attention_fixed_split(
            q,
            kv,
            rows,
            of_tile,
            max_keys=4096,
            window=window,
            soft_cap=soft_cap,
            out=out,
            tile=tile,
            parallel=n_new == 1,
        )

    return call
