"""A typical batch of prompt rows, on which the attention kernels for prompts are inspected (on meta) and timed."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.attention_merge import Parts
from engine.kernels.kv_load import QUANTISED
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes

HEADS = 32
"""At most: a multiple of the group."""


def prompt_rows(
    n_rows: int,
    n_new: int,
    n_keys: int,
    *,
    head_dim: int,
    group: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    page_size: int,
    device: torch.device,
) -> tuple[Tensor, PagedKV, Rows]:
    """q and what it reads: n_rows rows of n_new tokens each, which end a request of n_keys, pages in no order."""
    kv_heads = HEADS // group
    pages = -(-n_keys // page_size)
    slots = n_rows * pages * page_size
    q = torch.randn(n_rows * n_new, kv_heads * group, head_dim, dtype=dtype, device=device)
    k, v = (torch.randn(kv_heads, slots, head_dim, device=device) for _ in range(2))
    k_scale = v_scale = None
    if kv_dtype in QUANTISED:
        k, v = 32 * k, 32 * v
        k_scale, v_scale = (torch.full((kv_heads, slots), 1 / 32, device=device) for _ in range(2))
    kv = PagedKV(k.to(kv_dtype), v.to(kv_dtype), page_size, k_scale, v_scale)
    rows = Rows(
        torch.randperm(n_rows * pages, device=device).view(n_rows, pages).to(torch.int32),
        torch.arange(n_rows, dtype=torch.int32, device=device),
        torch.full((n_rows,), n_keys, dtype=torch.int32, device=device),
        torch.arange(n_rows + 1, dtype=torch.int32, device=device) * n_new,
    )
    return q, kv, rows


def shared_prefix(q: Tensor, n_shared: int) -> tuple[SharedPrefixes, Parts]:
    """What prompt rows are told when the first n_shared keys of all were read before, as one part."""
    queries, heads, head_dim = q.shape
    nothing = torch.zeros(1, dtype=torch.int32, device=q.device)
    each = torch.ones(queries, dtype=torch.int32, device=q.device)
    parts = Parts(
        torch.randn(1, queries, heads, head_dim, device=q.device), torch.randn(1, queries, heads, device=q.device)
    )
    return SharedPrefixes(*8 * (nothing,), n_shared * each, each, 1), parts
