"""How every attention kernel reads the paged pool: positions to slots through a page table, slots to a tile of K or V.

The pool of one kv head is a matrix [slots, head_dim]; the keys of a request are rows of it, `page_size` at a time in
order, the pages anywhere. So a tile is a gather of whole rows: each is contiguous (256 bytes at head size 128 in 16
bit) and is fetched by 16-byte asynchronous copies. Offsets are 64 bits wide: a pool may have more than 2**31 elements.
An 8-bit pool is widened to the queries' type without loss (`matrix.widen`: bfloat16 and float16 hold every int8 and
float8_e4m3); its scales, one per slot and kv head, multiply scores and probabilities instead of the tile.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.paged import PagedKV

PLAIN = (torch.float32, torch.float16, torch.bfloat16)
QUANTISED = (torch.int8, torch.float8_e4m3fn)
HEAD_DIMS = range(32, 257)


@triton.jit
def slots_of(table_ptr, positions, end, PAGE_SIZE: tl.constexpr, MASKED: tl.constexpr):
    """int64 slots of int32 `positions` (any shape) of the request whose page table starts at `table_ptr`.

    MASKED: positions from `end` on are not looked up (slot of page 0, to be masked again when it is read).
    """
    if MASKED:
        page = tl.load(table_ptr + positions // PAGE_SIZE, mask=positions < end, other=0)
    else:
        page = tl.load(table_ptr + positions // PAGE_SIZE)
    return page.to(tl.int64) * PAGE_SIZE + positions % PAGE_SIZE


@triton.jit
def load_rows(head_ptr, slots, valid, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows `slots` [n] of K or V of one kv head (`head_ptr` = pool + kv_head * head stride) -> [n, BLOCK_D] as stored.

    Columns past HEAD_DIM are zero; MASKED: so are rows where `valid` [n] is false (whatever lies in the pool there).
    """
    column = tl.arange(0, BLOCK_D)
    pointers = head_ptr + (slots[:, None] * HEAD_DIM + column[None, :])
    if MASKED:
        if HEAD_DIM == BLOCK_D:
            return tl.load(pointers, mask=valid[:, None], other=0.0)
        else:
            return tl.load(pointers, mask=valid[:, None] & (column < HEAD_DIM)[None, :], other=0.0)
    else:
        if HEAD_DIM == BLOCK_D:
            return tl.load(pointers)
        else:
            return tl.load(pointers, mask=(column < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def load_scales(head_ptr, slots, valid, MASKED: tl.constexpr):
    """float32 scales [n] of `slots` of one kv head (`head_ptr` = scales + kv_head * head stride)."""
    if MASKED:
        return tl.load(head_ptr + slots, mask=valid, other=0.0)
    else:
        return tl.load(head_ptr + slots)


def check_pool(q: Tensor, kv: PagedKV) -> int:
    """What every attention launcher asks of q [queries, heads, head_dim] and the pool; returns heads // kv heads.

    Raises ValueError.
    """
    if q.dim() != 3 or not q.is_contiguous():
        raise ValueError(f"q must be contiguous [queries, heads, head_dim], not {list(q.shape)} with {q.stride()}")
    if kv.k.dim() != 3 or kv.k.shape != kv.v.shape or kv.k.dtype != kv.v.dtype or kv.k.stride() != kv.v.stride():
        raise ValueError(
            "k and v must be alike, [kv heads, slots, head_dim]: "
            f"{list(kv.k.shape)} {kv.k.dtype} and {list(kv.v.shape)} {kv.v.dtype}"
        )
    heads, head_dim = q.shape[1:]
    kv_heads = kv.k.shape[0]
    if head_dim != kv.k.shape[2] or head_dim not in HEAD_DIMS:
        raise ValueError(
            f"head_dim of q is {head_dim}, of the pool {kv.k.shape[2]}: they must be equal, from 32 to 256"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{heads} query heads can't share {kv_heads} kv heads evenly")
    if kv.k.stride(2) != 1 or kv.k.stride(1) != head_dim:
        raise ValueError(f"the rows of the pool must lie one after another, not with strides {kv.k.stride()}")
    if kv.page_size < 1:
        raise ValueError(f"page_size is {kv.page_size}: it must be at least 1")
    scaled = kv.k_scale is not None and kv.v_scale is not None
    if q.dtype not in PLAIN:
        raise ValueError(f"q is {q.dtype}: it must be one of {', '.join(map(str, PLAIN))}")
    if kv.k.dtype in QUANTISED:
        if not scaled:
            raise ValueError(f"a {kv.k.dtype} pool needs k_scale and v_scale, float32 [kv heads, slots]")
        for scale in (kv.k_scale, kv.v_scale):
            assert scale is not None
            if scale.shape != kv.k.shape[:2] or scale.dtype != torch.float32 or scale.stride(1) != 1:
                raise ValueError(
                    f"a scale is {scale.dtype} {list(scale.shape)}: it must be float32 {list(kv.k.shape[:2])}"
                )
    elif kv.k.dtype != q.dtype or kv.k_scale is not None or kv.v_scale is not None:
        raise ValueError(
            f"the pool is {kv.k.dtype}{' with scales' if scaled else ''}, q {q.dtype}: it must have the same type "
            f"without scales, or one of {', '.join(map(str, QUANTISED))} with scales"
        )
    return int(heads // kv_heads)


def check_out(q: Tensor, out: Tensor) -> None:
    """Raises ValueError unless `out` can take what attention gives for q."""
    if out.shape != q.shape or out.dtype != q.dtype or not out.is_contiguous():
        raise ValueError(
            f"out must be like q, contiguous {q.dtype} {list(q.shape)}, not {out.dtype} {list(out.shape)} with strides "
            f"{out.stride()}"
        )


def gather_kv(kv: PagedKV, table: Tensor, n_keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V of the first n_keys tokens that a page table [pages] leads to, [kv heads, n_keys, head_dim] in `dtype`.

    What the references read; scales are multiplied in.
    """
    positions = torch.arange(n_keys, device=table.device)
    slots = table[positions // kv.page_size].long() * kv.page_size + positions % kv.page_size
    k, v = kv.k[:, slots].to(dtype), kv.v[:, slots].to(dtype)
    if kv.k_scale is not None and kv.v_scale is not None:
        k = k * kv.k_scale[:, slots, None].to(dtype)
        v = v * kv.v_scale[:, slots, None].to(dtype)
    return k, v
