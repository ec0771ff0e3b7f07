"""One new query a row against the row's paged keys: split-KV flash decoding (Dao et al., Flash-Decoding, 2023).

    out = sum_j softmax_j(q k_j * scale) v_j

Tiling: one program takes one kv head and one range of one row's keys, with the query heads that share the kv head as
the rows of its tile (padded to 16 for the matrix units: a product that waits for memory either way). A row's keys are
cut into as many ranges as it takes to fill the processors. Where they are cut is worked out by every program from the
lengths on the device: `keys` = all keys of the batch / the programs wanted, at least LEAST, and a row of n keys gets
ceil(n / keys) programs of equal work. So one long row among short ones is spread, nothing is spread in a batch that
fills the GPU anyway, and a graph captured for long contexts is as good for short ones: the grid is the batch plus the
programs wanted, and those left over end at once. Ranges of one row are merged by `attention_merge`; a row in a single
range is written here.

Moves: K and V of each key once (2 * head_dim * kv heads numbers a key), q and out, and head_dim + 1 float32 a head,
range and way for the ranges of a cut row; 4 * heads * head_dim operations a key.
Roofline: memory bandwidth, 85 % of it at 8k keys: with G heads a kv head, 2 G operations a byte in 16 bit, far below
what a byte of memory traffic is worth to the matrix units (A100 150, H200 200) even padded to 16.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.attention_example import shared_prefix
from engine.kernels.attention_merge import Parts, Splits, attention_merge, attention_merge_reference
from engine.kernels.attention_range import attend_range
from engine.kernels.cases import Call, Case
from engine.kernels.kv_load import check_out, check_pool, gather_kv
from engine.kernels.launch import launch
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose, current_gpu

AT_ONCE = 1024
"""Lengths that a program looks at in one go to find its work."""


@triton.jit
def _own_begin(n_keys, n_shared, WINDOW: tl.constexpr):
    """First key that a row with n_keys keys reads itself."""
    if WINDOW > 0:
        return tl.maximum(n_shared, n_keys - WINDOW)
    else:
        return n_shared


@triton.jit
def _own_of(n_keys_ptr, n_shared_ptr, row, n_rows, SHARED: tl.constexpr, WINDOW: tl.constexpr):
    """How many keys each of `row` reads itself, 0 past the last row."""
    n_keys = tl.load(n_keys_ptr + row, mask=row < n_rows, other=0)
    n_shared = tl.zeros_like(n_keys)
    if SHARED:
        n_shared = tl.load(n_shared_ptr + row, mask=row < n_rows, other=0)
    return tl.maximum(n_keys - _own_begin(n_keys, n_shared, WINDOW), 0)


@triton.jit
def _find(
    item,
    n_keys_ptr,
    n_shared_ptr,
    n_rows,
    programs,
    SHARED: tl.constexpr,
    WINDOW: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,
):
    """(row of an item, first item of that row, most keys an item); past the last item: row n_rows.

    Each row takes max(1, ceil(keys it reads itself / most keys)) items in turn.
    """
    total = 0
    for start in range(0, n_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        total += tl.sum(_own_of(n_keys_ptr, n_shared_ptr, row, n_rows, SHARED, WINDOW), 0)
    keys = tl.maximum(tl.cdiv(tl.cdiv(total, programs), BLOCK_N) * BLOCK_N, LEAST)
    found, first, before = 0, 0, 0
    for start in range(0, n_rows, ROWS):
        row = start + tl.arange(0, ROWS)
        own = _own_of(n_keys_ptr, n_shared_ptr, row, n_rows, SHARED, WINDOW)
        items = tl.where(row < n_rows, tl.maximum(tl.cdiv(own, keys), 1), 0)
        ends = before + tl.cumsum(items, 0)
        passed = (row < n_rows) & (ends <= item)
        found += tl.sum(passed.to(tl.int32), 0)
        first = tl.maximum(first, tl.max(tl.where(passed, ends, 0), 0))
        before += tl.sum(items, 0)
    return found, first, keys


@triton.jit(do_not_specialize=["n_rows", "programs"])
def attention_decode_kernel(
    q,
    k,
    v,
    k_scale,
    v_scale,
    tables,
    table,
    n_keys,
    n_shared,
    n_parts,
    out,
    split_out,
    split_lse,
    split_first,
    split_n,
    n_rows,
    programs,
    kv_stride,
    scale_stride,
    table_stride,
    scale,
    soft_cap,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    CAPPED: tl.constexpr,
    QUANTISED: tl.constexpr,
    SHARED: tl.constexpr,
    CUT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    LEAST: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    item = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    row, first, most = item, item, 0
    if CUT:
        row, first, most = _find(item, n_keys, n_shared, n_rows, programs, SHARED, WINDOW, ROWS, BLOCK_N, LEAST)
    if row >= n_rows:
        return

    keys = tl.load(n_keys + row)
    parts = tl.load(n_parts + row) if SHARED else 0
    begin = _own_begin(keys, tl.load(n_shared + row) if SHARED else 0, WINDOW)
    end = keys
    items = 1
    if CUT:  # in equal pieces of whole blocks
        items = tl.maximum(tl.cdiv(keys - begin, most), 1)
        piece = tl.cdiv(tl.cdiv(keys - begin, items), BLOCK_N) * BLOCK_N
        begin += (item - first) * piece
        end = tl.minimum(begin + piece, keys)
    whole = (items == 1) & (parts == 0)

    line = tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    inside = (line < GROUP)[:, None] & (column < HEAD_DIM)[None, :]
    heads = kv_head * GROUP + line
    from_row = row.to(tl.int64) * (KV_HEADS * GROUP)
    if (CUT or SHARED) and (kv_head == 0) and (item == first):
        tl.store(split_first + row, item)
        tl.store(split_n + row, tl.where(whole, 0, items))

    if begin < end:
        group_q = tl.load(q + (from_row + heads)[:, None] * HEAD_DIM + column[None, :], mask=inside, other=0.0)
        at = kv_head.to(tl.int64) * kv_stride
        scale_at = kv_head.to(tl.int64) * scale_stride
        group_out, lse = attend_range(
            group_q,
            k + at,
            v + at,
            k_scale + scale_at if QUANTISED else None,
            v_scale + scale_at if QUANTISED else None,
            tables + tl.load(table + row).to(tl.int64) * table_stride,
            begin,
            end,
            scale,
            soft_cap,
            HEAD_DIM,
            PAGE_SIZE,
            QUANTISED,
            CAPPED,
            BLOCK_N,
        )
    else:
        group_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        lse = tl.full([BLOCK_M], float("-inf"), tl.float32)

    if whole:
        to_out = from_row + heads
        tl.store(out + to_out[:, None] * HEAD_DIM + column[None, :], group_out.to(out.dtype.element_ty), mask=inside)
    elif CUT or SHARED:
        to_split = item.to(tl.int64) * (KV_HEADS * GROUP) + heads
        tl.store(split_out + to_split[:, None] * HEAD_DIM + column[None, :], group_out, mask=inside)
        tl.store(split_lse + to_split, lse, mask=line < GROUP)


def attention_decode(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    *,
    max_keys: int,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    shared: SharedPrefixes | None = None,
    parts: Parts | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """q [rows, heads, head_dim], one query a row (row i's is q[i]) -> out, like q.

    A row sees its keys 0 .. n_keys - 1, or the last `window` of them (0: all). A row with n_keys 0 (padding) gets
    zeros. max_keys: no row has more; known to the host, e.g. the longest context that a graph may meet. It only bounds
    the launch, the speed follows from the lengths on the device. scale: 1 / sqrt(head_dim) unless given. soft_cap:
    scores become soft_cap * tanh(score / soft_cap) (0: not). With `shared` and its `parts` (what
    `attention_shared_prefix` gives) row i reads its keys from n_shared[i] on and its n_parts[i] parts are merged in.
    Raises ValueError for shapes and types that don't fit, and for a window over shared prefixes.
    """
    group = check_pool(q, kv)
    out = torch.empty_like(q) if out is None else out
    _check(q, rows, max_keys, window, shared, parts, out)
    n_rows, heads, head_dim = q.shape
    kv_heads = kv.k.shape[0]
    tile = tile or choose(TILES, _shape(q, kv))
    constants = tile.constants
    programs = _programs(tile, kv_heads)
    least = max(constants["LEAST"], constants["BLOCK_N"])
    cut = max_keys > least
    items = min(n_rows + programs, n_rows * triton.cdiv(max_keys, least)) if cut else n_rows
    splits = None
    if cut or shared is not None:
        splits = Splits(
            torch.empty(items, heads, head_dim, dtype=torch.float32, device=q.device),
            torch.empty(items, heads, dtype=torch.float32, device=q.device),
            torch.empty(n_rows, dtype=torch.int32, device=q.device),
            torch.empty(n_rows, dtype=torch.int32, device=q.device),
        )
    launch(
        attention_decode_kernel,
        (items * kv_heads,),
        q,
        kv.k,
        kv.v,
        kv.k_scale,
        kv.v_scale,
        rows.tables,
        rows.table,
        rows.n_keys,
        None if shared is None else shared.n_shared,
        None if shared is None else shared.n_parts,
        out,
        None if splits is None else splits.out,
        None if splits is None else splits.lse,
        None if splits is None else splits.first,
        None if splits is None else splits.n,
        n_rows,
        programs,
        kv.k.stride(0),
        0 if kv.k_scale is None else kv.k_scale.stride(0),
        rows.tables.stride(0),
        head_dim**-0.5 if scale is None else scale,
        soft_cap,
        tile=tile._replace(constants={**constants, "LEAST": least}),
        KV_HEADS=kv_heads,
        GROUP=group,
        HEAD_DIM=head_dim,
        PAGE_SIZE=kv.page_size,
        WINDOW=window,
        CAPPED=soft_cap > 0.0,
        QUANTISED=kv.k_scale is not None,
        SHARED=shared is not None,
        CUT=cut,
        ROWS=min(triton.next_power_of_2(max(n_rows, 1)), AT_ONCE),
        BLOCK_M=max(16, triton.next_power_of_2(group)),
        BLOCK_D=triton.next_power_of_2(head_dim),
    )
    if splits is not None:
        attention_merge(parts, None if shared is None else shared.n_parts, out=out, splits=splits)
    return out


def attention_decode_reference(
    q: Tensor,
    kv: PagedKV,
    rows: Rows,
    *,
    max_keys: int,
    scale: float | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    shared: SharedPrefixes | None = None,
    parts: Parts | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The same in plain PyTorch; in float64 when given float64."""
    out = torch.empty_like(q) if out is None else out
    wide = torch.promote_types(q.dtype, torch.float32)
    group = q.shape[1] // kv.k.shape[0]
    scale = q.shape[2] ** -0.5 if scale is None else scale
    for row, n_keys in enumerate(rows.n_keys.tolist()):
        begin = 0 if shared is None else int(shared.n_shared[row])
        if window:
            begin = max(begin, n_keys - window)
        k, v = gather_kv(kv, rows.tables[int(rows.table[row])], n_keys, wide)
        k, v = (x[:, begin:].repeat_interleave(group, dim=0) for x in (k, v))  # [heads, keys, head_dim]
        scores = torch.einsum("hd,hkd->hk", q[row].to(wide), k) * scale
        if soft_cap:
            scores = soft_cap * torch.tanh(scores / soft_cap)
        own = torch.einsum("hk,hkd->hd", scores.softmax(-1), v)
        if shared is not None and parts is not None and int(shared.n_parts[row]):
            lse = scores.logsumexp(-1)
            all_parts = Parts(
                torch.cat([parts.out[: int(shared.n_parts[row]), row].to(wide), own[None]])[:, None],
                torch.cat([parts.lse[: int(shared.n_parts[row]), row].to(wide), lse[None]])[:, None],
            )
            merged = torch.empty_like(own)[None]
            attention_merge_reference(all_parts, shared.n_parts[row : row + 1] + 1, out=merged)
            own = merged[0]
        out[row] = own.to(out.dtype)
    return out


def work(
    n_keys: int,
    n_rows: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    *,
    kv_bytes: int = 2,
    out_bytes: int = 2,
    scaled: bool = False,
) -> Work:
    """n_keys: of all rows together, those they read themselves. scaled: a quantised pool's scales are read too."""
    key = 2 * kv_heads * (head_dim * kv_bytes + 4 * scaled)
    return Work(n_keys * key + 2 * n_rows * heads * head_dim * out_bytes, 4 * n_keys * heads * head_dim)


def _programs(tile: Tile, kv_heads: int) -> int:
    """Ranges wanted for each kv head, so that the GPU has its PROGRAMS a processor."""
    return triton.cdiv(tile.constants["PROGRAMS"] * current_gpu().processors, kv_heads)


def _check(
    q: Tensor,
    rows: Rows,
    max_keys: int,
    window: int,
    shared: SharedPrefixes | None,
    parts: Parts | None,
    out: Tensor,
) -> None:
    if rows.table.shape != q.shape[:1] or rows.n_keys.shape != q.shape[:1]:
        raise ValueError(
            f"{q.shape[0]} queries for {rows.table.shape[0]} rows with {rows.n_keys.shape[0]} lengths: "
            "a decode batch has one query a row"
        )
    for name, values in (("tables", rows.tables), ("table", rows.table), ("n_keys", rows.n_keys)):
        if values.dtype != torch.int32 or values.stride(-1) != 1:
            raise ValueError(f"rows.{name} is {values.dtype} with strides {values.stride()}: it must be int32, packed")
    if max_keys < 0 or window < 0:
        raise ValueError(f"max_keys is {max_keys}, window {window}: neither may be negative")
    if (shared is None) != (parts is None):
        raise ValueError("shared and parts go together: give both or neither")
    if shared is not None and window:
        raise ValueError(f"a window of {window} keys over shared prefixes: the groups read whole prefixes; share none")
    if shared is not None and (shared.n_shared.shape != q.shape[:1] or shared.n_parts.shape != q.shape[:1]):
        raise ValueError(f"shared.n_shared and n_parts must be [{q.shape[0]}], not {list(shared.n_shared.shape)}")
    check_out(q, out)


def _shape(q: Tensor, kv: PagedKV) -> Shape:
    return {
        "head_dim": q.shape[2],
        "dtype": str(q.dtype).removeprefix("torch."),
        "kv": str(kv.k.dtype).removeprefix("torch."),
        "group": q.shape[1] // kv.k.shape[0],
    }


def _tile(block: int, stages: int, warps: int = 4, programs: int = 8) -> Tile:
    return Tile({"BLOCK_N": block, "LEAST": max(128, block), "PROGRAMS": programs}, warps, stages)


def _default(capability: int, shape: Shape) -> Tile:
    """Two or three blocks of keys in shared memory, of 32 KiB each (16 KiB where there is less): one is multiplied
    while the others are on their way, and two programs or more share a processor."""
    head_dim = triton.next_power_of_2(int(shape["head_dim"]))
    wide = head_dim > 128
    if shape["dtype"] == "float32":
        return _tile(block=16, stages=3)
    if capability in (86, 89):
        return _tile(block=16 if wide else 32, stages=5)
    return _tile(block=32 if wide else 64, stages=7 if capability >= 90 and head_dim == 128 else 5)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    wide = triton.next_power_of_2(int(shape["head_dim"])) > 128
    if shape["dtype"] == "float32":
        return [_tile(16, stages, warps) for stages in (3, 5) for warps in (4, 8)]
    return [
        _tile(block, stages, warps, programs)
        for block in ((16, 32) if wide else (32, 64, 128))
        for stages in (3, 5, 7)
        for warps in (4, 8)
        for programs in (4, 8, 16)
        if 4 * block * triton.next_power_of_2(int(shape["head_dim"])) * (stages // 2) <= _shared_memory(capability)
    ]


def _shared_memory(capability: int) -> int:
    """Bytes that a block of threads may have on a chip, less what a tile needs beside its keys."""
    return {86: 91, 89: 91, 80: 155}.get(capability, 219) * 1024


TILES = Tiles("attention_decode", _default, _candidates)


def cases() -> Iterator[Case]:
    """Head sizes, groups, page sizes, types of the pool, and what models ask for besides."""
    bf16 = torch.bfloat16
    for head_dim in (64, 80, 128, 256):
        for group in (1, 4, 7):
            yield _case(head_dim, group, bf16)
    yield _case(128, 1, bf16, page_size=16)
    yield _case(128, 4, bf16, page_size=16)
    for dtype in (torch.float16, torch.float32):
        yield _case(128, 4, dtype)
    for quantised in (torch.int8, torch.float8_e4m3fn):
        yield _case(128, 1, bf16, kv_dtype=quantised)
        yield _case(128, 4, bf16, kv_dtype=quantised, page_size=16)
    yield _case(128, 4, bf16, window=4096)
    yield _case(256, 2, bf16, window=4096, soft_cap=50.0)
    yield _case(128, 1, bf16, n_rows=128, n_keys=128)
    yield _case(128, 1, bf16, n_rows=64, n_shared=4096, n_keys=4224)
    yield _case(128, 4, bf16, n_rows=64, n_shared=4096, n_keys=4224, page_size=16)


def _case(
    head_dim: int,
    group: int,
    dtype: torch.dtype,
    *,
    kv_dtype: torch.dtype | None = None,
    page_size: int = 1,
    window: int = 0,
    soft_cap: float = 0.0,
    n_rows: int = 8,
    n_keys: int = 8192,
    n_shared: int = 0,
) -> Case:
    kv_heads = 32 // group
    stored = kv_dtype or dtype

    def make(device: torch.device) -> Call:
        pages = triton.cdiv(n_rows * n_keys, page_size)
        pool = [
            torch.randn(kv_heads, pages * page_size, head_dim, device=device).mul_(30).to(stored)
            if kv_dtype
            else torch.randn(kv_heads, pages * page_size, head_dim, dtype=stored, device=device)
            for _ in "kv"
        ]
        scales = [torch.full(x.shape[:2], 1 / 30, device=device) if kv_dtype else None for x in pool]
        kv = PagedKV(pool[0], pool[1], page_size, scales[0], scales[1])
        count = torch.arange(n_rows + 1, dtype=torch.int32, device=device)
        tables = torch.randperm(pages, device=device).int().view(n_rows, -1)
        rows = Rows(tables, count[:-1], torch.full((n_rows,), n_keys, dtype=torch.int32, device=device), count)
        q = torch.randn(n_rows, kv_heads * group, head_dim, dtype=dtype, device=device)
        out = torch.empty_like(q)
        shared, parts = shared_prefix(q, n_shared) if n_shared else (None, None)
        return lambda tile: attention_decode(
            q,
            kv,
            rows,
            max_keys=n_keys,
            window=window,
            soft_cap=soft_cap,
            shared=shared,
            parts=parts,
            out=out,
            tile=tile,
        )

    def name(dtype: torch.dtype) -> str:
        return str(dtype).removeprefix("torch.")

    label = f"head_dim={head_dim} group={group} {name(dtype)} page_size={page_size} rows={n_rows} keys={n_keys}"
    label += f" {name(stored)}-kv" if kv_dtype else ""
    label += f" window={window}" if window else ""
    label += f" soft_cap={soft_cap:g}" if soft_cap else ""
    label += f" shared={n_shared}" if n_shared else ""
    shape: Shape = {"head_dim": head_dim, "dtype": name(dtype), "kv": name(stored), "group": group}
    capability = 89 if kv_dtype == torch.float8_e4m3fn else 80
    return Case(label, TILES, shape, make, dtype != torch.float32, capability)
