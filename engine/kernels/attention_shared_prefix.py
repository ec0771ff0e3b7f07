"""Attention of many queries to a prefix that their requests share, read once (cascade attention, as in Hydragen,
arXiv 2402.05099).

    out_p, lse_p = softmax attention of each member to keys begin_p .. end_p - 1 of its prefix

The queries of all members stand before every key of the prefix, so there is no mask: what would be a vector times K and
V for each request is one matrix product for the group. The rows' own tails are attended to by `attention_decode` and
`attention_extend`, which merge these parts in by their log-sum-exp (`attention_merge`).

Tiling: one program takes one item of the host's plan (up to 64 or 128 lines of queries x heads of one kv head, a range
of keys) and one kv head, or BLOCK_M lines of it where registers don't hold them all. The plan cuts the keys so that
the items of all groups fill the processors once, and puts the longest first. Items over the same keys are neighbours:
the second reads them from the second-level cache.

Moves: K and V of each prefix once, q once a range, and head_dim + 1 float32 a query, head and range, which the merge
reads again; 4 * members * heads * head_dim operations a key.
Roofline: memory bandwidth up to about 200 lines a group (64 lines: 64 operations a byte in 16 bit, where the matrix
units of an H200 manage about 200 in the time of a byte), the matrix units beyond.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.attention_merge import Parts
from engine.kernels.attention_range import attend_range
from engine.kernels.cases import Call, Case
from engine.kernels.kv_load import check_pool, gather_kv
from engine.kernels.launch import launch
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes
from engine.kernels.roofline import Work
from engine.kernels.shared_prefix_plan import lines_of, pays, plan_shared_prefixes
from engine.kernels.tiles import Shape, Tile, Tiles, choose, current_gpu

__all__ = [
    "attention_shared_prefix",
    "attention_shared_prefix_reference",
    "cases",
    "pays",
    "plan_shared_prefixes",
    "work",
]


@triton.jit(do_not_specialize=["n_queries"])
def attention_shared_prefix_kernel(
    q,
    k,
    v,
    k_scale,
    v_scale,
    tables,
    query,
    n_items,
    item_first,
    item_queries,
    item_table,
    item_begin,
    item_end,
    item_part,
    part_out,
    part_lse,
    n_queries,
    kv_stride,
    scale_stride,
    table_stride,
    scale,
    soft_cap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    QUANTISED: tl.constexpr,
    LINES: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    kv_head = tl.program_id(0) % KV_HEADS
    tile = tl.program_id(0) // KV_HEADS
    item = tile // (LINES // BLOCK_M)
    if item >= tl.load(n_items):
        return
    n_lines = tl.load(item_queries + item) * GROUP
    first_line = tile % (LINES // BLOCK_M) * BLOCK_M
    if first_line >= n_lines:
        return
    line = first_line + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    is_query = line < n_lines
    inside = is_query[:, None] & (column < HEAD_DIM)[None, :]
    member = tl.load(query + tl.load(item_first + item) + line // GROUP, mask=is_query, other=0)
    to_head = kv_head * GROUP + line % GROUP
    from_q = member.to(tl.int64) * (KV_HEADS * GROUP) + to_head
    group_q = tl.load(q + from_q[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0.0)
    at = kv_head.to(tl.int64) * kv_stride
    scale_at = kv_head.to(tl.int64) * scale_stride
    group_out, lse = attend_range(
        group_q,
        k + at,
        v + at,
        k_scale + scale_at if QUANTISED else None,
        v_scale + scale_at if QUANTISED else None,
        tables + tl.load(item_table + item).to(tl.int64) * table_stride,
        tl.load(item_begin + item),
        tl.load(item_end + item),
        scale,
        soft_cap,
        HEAD_DIM,
        PAGE_SIZE,
        QUANTISED,
        CAPPED,
        BLOCK_N,
    )
    part = tl.load(item_part + item).to(tl.int64) * n_queries
    to = (part + member) * (KV_HEADS * GROUP) + to_head
    tl.store(part_out + to[:, None] * HEAD_DIM + column[None, :], group_out, mask=inside)
    tl.store(part_lse + to, lse, mask=is_query)


def attention_shared_prefix(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    groups: SharedPrefixes,
    *,
    scale: float | None = None,
    soft_cap: float = 0.0,
    tile: Tile | None = None,
) -> Parts:
    """q [queries, heads, head_dim], packed queries of any rows -> each member's attention to its group's prefix.

    groups: as `plan_shared_prefixes` plans them for q.shape[0] queries (or fewer, with n_shared and n_parts padded by
    zeros; the item arrays may be longer than n_items too). Of `rows` only the tables are read. Part p of query i is
    written for p < n_parts[i], the rest is left as the memory was.
    scale: 1 / sqrt(head_dim) unless given. Raises ValueError for shapes and types that don't fit.
    """
    group = check_pool(q, kv)
    _check(q, rows, groups)
    n_queries, heads, head_dim = q.shape
    kv_heads = kv.k.shape[0]
    parts = Parts(
        torch.empty(groups.max_parts, n_queries, heads, head_dim, dtype=torch.float32, device=q.device),
        torch.empty(groups.max_parts, n_queries, heads, dtype=torch.float32, device=q.device),
    )
    lines = lines_of(n_queries, group)
    tile = tile or choose(TILES, _shape(head_dim, q.dtype, kv.k.dtype, lines))
    block = min(tile.constants["BLOCK_M"], lines)
    launch(
        attention_shared_prefix_kernel,
        (groups.item_first.shape[0] * (lines // block) * kv_heads,),
        q,
        kv.k,
        kv.v,
        kv.k_scale,
        kv.v_scale,
        rows.tables,
        groups.query,
        groups.n_items,
        groups.item_first,
        groups.item_queries,
        groups.item_table,
        groups.item_begin,
        groups.item_end,
        groups.item_part,
        parts.out,
        parts.lse,
        n_queries,
        kv.k.stride(0),
        0 if kv.k_scale is None else kv.k_scale.stride(0),
        rows.tables.stride(0),
        head_dim**-0.5 if scale is None else scale,
        soft_cap,
        tile=tile._replace(constants={**tile.constants, "BLOCK_M": block}),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=kv.page_size,
        CAPPED=soft_cap > 0.0,
        QUANTISED=kv.k_scale is not None,
        LINES=lines,
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    return parts


def attention_shared_prefix_reference(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    groups: SharedPrefixes,
    *,
    scale: float | None = None,
    soft_cap: float = 0.0,
    tile: Tile | None = None,
) -> Parts:
    """The same in plain PyTorch; in float64 when given float64. Parts that no item writes hold NaN."""
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // kv.k.shape[0]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    shape = (groups.max_parts, *q.shape)
    parts = Parts(
        torch.full(shape, torch.nan, dtype=wide, device=q.device),
        torch.full(shape[:3], torch.nan, dtype=wide, device=q.device),
    )
    for item in range(int(groups.n_items)):
        first, begin, end = (int(x[item]) for x in (groups.item_first, groups.item_begin, groups.item_end))
        members = groups.query[first : first + int(groups.item_queries[item])].long()
        k, v = gather_kv(kv, rows.tables[int(groups.item_table[item])], end, wide)
        k, v = (x[:, begin:].repeat_interleave(group, dim=0) for x in (k, v))  # [heads, keys, head_dim]
        scores = torch.einsum("qhd,hkd->qhk", q[members].to(wide), k) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        part = int(groups.item_part[item])
        parts.out[part, members] = torch.einsum("qhk,hkd->qhd", scores.softmax(-1), v)
        parts.lse[part, members] = scores.logsumexp(-1)
    return parts


def work(
    n_members: int,
    n_tokens: int,
    n_parts: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    kv_bytes: int = 2,
    q_bytes: int = 2,
    scaled: bool = False,
) -> Work:
    """One group. n_parts: ranges that its prefix is cut into. scaled: a quantised pool's scales are read too."""
    keys = n_tokens * 2 * kv_heads * (head_dim * kv_bytes + 4 * scaled)
    queries = n_members * heads * (head_dim * q_bytes + n_parts * 4 * (head_dim + 1))
    return Work(keys + queries, 4 * n_members * heads * n_tokens * head_dim)


def _check(q: Tensor, rows: Rows, groups: SharedPrefixes) -> None:
    items = groups.item_first.shape
    for name, values in groups._asdict().items():
        if not isinstance(values, Tensor):
            continue
        if values.dtype != torch.int32 or values.dim() != 1:
            raise ValueError(f"groups.{name} is {values.dtype} {list(values.shape)}: it must be int32, one-dimensional")
        if name.startswith("item_") and values.shape != items:
            raise ValueError(f"groups.{name} has {values.shape[0]} items, groups.item_first {items[0]}")
    if groups.n_shared.shape != q.shape[:1] or groups.n_parts.shape != q.shape[:1]:
        raise ValueError(
            f"groups.n_shared and n_parts are for {groups.n_shared.shape[0]} and {groups.n_parts.shape[0]} queries, "
            f"q has {q.shape[0]}: pad them with zeros"
        )
    if items[0] and groups.max_parts < 1:
        raise ValueError(f"groups.max_parts is {groups.max_parts}: items need room for a part at least")
    if rows.tables.dtype != torch.int32 or rows.tables.stride(-1) != 1:
        raise ValueError(f"rows.tables is {rows.tables.dtype}, strides {rows.tables.stride()}: must be int32, packed")


def _shape(head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, lines: int) -> Shape:
    return {"head_dim": head_dim, "dtype": _name(dtype), "kv": _name(kv_dtype), "lines": lines}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _default(capability: int, shape: Shape) -> Tile:
    """A warp for 16 lines, two blocks of keys in shared memory, two programs a processor where that fits."""
    lines, wide = int(shape["lines"]), triton.next_power_of_2(int(shape["head_dim"])) > 128
    if shape["dtype"] == "float32":
        return Tile({"BLOCK_M": 16, "BLOCK_N": 16}, 4, 3)
    if capability < 90 and wide:
        return Tile({"BLOCK_M": 64, "BLOCK_N": 32}, 8, 3)
    keys = 32 if wide or capability in (86, 89) else 64
    return Tile({"BLOCK_M": min(lines, 128), "BLOCK_N": keys}, 8 if wide else min(lines // 16, 8), 5)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    if shape["dtype"] == "float32":
        return [Tile({"BLOCK_M": lines, "BLOCK_N": 16}, 8 if lines == 32 else 4, 3) for lines in (16, 32)]
    head_dim = triton.next_power_of_2(int(shape["head_dim"]))
    room = {86: 95, 89: 95, 80: 159}.get(capability, 223) * 1024
    ahead = 1 if capability >= 90 else 0  # blocks that stay while the matrix units read them from shared memory
    return [
        Tile({"BLOCK_M": lines, "BLOCK_N": keys}, warps, stages)
        for lines in sorted({64, min(int(shape["lines"]), 128)})
        for keys in (32, 64, 128)
        for stages in (3, 5, 7)
        for warps in (4, 8)
        if 2 * head_dim * (lines + 2 * keys * (stages // 2 + ahead)) <= room
        and (warps == 8 or lines * head_dim <= 64 * 128)
    ]


TILES = Tiles("attention_shared_prefix", _default, _candidates)


def cases() -> Iterator[Case]:
    """Branches that decode after one prefix, prompts that go on from one; head sizes, groups and pools."""
    bf16 = torch.bfloat16
    for head_dim in (64, 80, 128, 256):
        yield _case(head_dim, 1, bf16)
        yield _case(head_dim, 4, bf16, n_members=1024)
    yield _case(128, 7, bf16, page_size=16)
    for dtype in (torch.float16, torch.float32):
        yield _case(128, 1, dtype)
    for quantised in (torch.int8, torch.float8_e4m3fn):
        yield _case(128, 1, bf16, kv_dtype=quantised)
    yield _case(256, 2, bf16, soft_cap=50.0)


def _case(
    head_dim: int,
    group: int,
    dtype: torch.dtype,
    *,
    kv_dtype: torch.dtype | None = None,
    page_size: int = 1,
    soft_cap: float = 0.0,
    n_members: int = 64,
    n_tokens: int = 4096,
) -> Case:
    kv_heads = 32 // group
    stored = kv_dtype or dtype

    def make(device: torch.device) -> Call:
        planned = plan_shared_prefixes(
            [(np.arange(n_members, dtype=np.int32), 0, n_tokens)],
            n_members,
            heads_per_kv=group,
            processors=current_gpu().processors,
            kv_heads=kv_heads,
        )
        on_device = {
            name: torch.from_numpy(x).to(device) for name, x in planned._asdict().items() if isinstance(x, np.ndarray)
        }
        groups = SharedPrefixes(**on_device, max_parts=planned.max_parts)
        pool = [torch.randn(kv_heads, n_tokens, head_dim, dtype=dtype, device=device) for _ in "kv"]
        scales = [torch.full(x.shape[:2], 1 / 30, device=device) if kv_dtype else None for x in pool]
        k, v = ((30 * x).to(stored) if kv_dtype else x for x in pool)
        kv = PagedKV(k, v, page_size, scales[0], scales[1])
        tables = torch.randperm(n_tokens // page_size, device=device).int().view(1, -1)
        one = torch.zeros(n_members, dtype=torch.int32, device=device)
        rows = Rows(tables, one, one + n_tokens, torch.arange(n_members + 1, dtype=torch.int32, device=device))
        q = torch.randn(n_members, kv_heads * group, head_dim, dtype=dtype, device=device)
        return lambda tile: attention_shared_prefix(q, kv, rows, groups, soft_cap=soft_cap, tile=tile)

    label = f"head_dim={head_dim} group={group} {_name(dtype)} page_size={page_size} members={n_members}"
    label += f" {_name(stored)}-kv" if kv_dtype else ""
    label += f" soft_cap={soft_cap:g}" if soft_cap else ""
    shape = _shape(head_dim, dtype, stored, lines_of(n_members, group))
    capability = 89 if kv_dtype == torch.float8_e4m3fn else 80
    return Case(label, TILES, shape, make, dtype != torch.float32, capability)
