"""Batches of prompt rows to inspect (on meta), time and test the attention kernels with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels.attention_merge import Parts
from engine.kernels.kv_load import QUANTISED
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes

HEADS = 32
"""Of a typical model, or the multiple of the group below it."""


class Batch(NamedTuple):
    q: Tensor
    kv: PagedKV
    rows: Rows

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.kv.k.shape[0]


def prompt_rows(
    lengths: Sequence[tuple[int, int]],
    *,
    kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Batch:
    """Rows of (cached prefix, new tokens) each, random numbers, pages in no order.

    A kernel that reads what it mustn't shows it: slots that hold no token are NaN (in an 8-bit pool their scales are),
    and page tables go on with pages that the pool doesn't have.
    """
    kv_dtype = kv_dtype or dtype
    on_host, on_device = torch.Generator().manual_seed(seed), _generator(device, seed)
    n_keys = torch.tensor([prefix + new for prefix, new in lengths])
    pages = -(-n_keys // page_size)
    n_pages = int(pages.sum()) + 2
    tables = torch.full((len(lengths), int(pages.max()) + 1), 2**20, dtype=torch.int32)
    used = torch.zeros(n_pages * page_size, dtype=torch.bool)
    free = torch.randperm(n_pages, generator=on_host).to(torch.int32)
    for table, n, its_pages in zip(tables, n_keys.tolist(), free.split([*pages.tolist(), 2]), strict=False):
        table[: len(its_pages)] = its_pages
        position = torch.arange(n)
        used[its_pages[position // page_size].long() * page_size + position % page_size] = True
    order = torch.randperm(len(lengths), generator=on_host)
    first = torch.tensor([0, *(new for _, new in lengths)]).cumsum(0)
    rows = Rows(
        tables[order].contiguous().to(device),
        *(x.to(torch.int32).to(device) for x in (order.argsort(), n_keys, first)),
    )
    q = torch.randn(int(first[-1]), kv_heads * group, head_dim, device=device, generator=on_device).to(dtype)
    shape = (kv_heads, len(used), head_dim)
    k, v = (torch.randn(shape, device=device, generator=on_device) for _ in range(2))
    return Batch(q, _pool(k, v, used.to(device), page_size, kv_dtype), rows)


def _pool(k: Tensor, v: Tensor, used: Tensor, page_size: int, dtype: torch.dtype) -> PagedKV:
    if dtype not in QUANTISED:
        k, v = (torch.where(used[:, None], x, torch.nan).to(dtype) for x in (k, v))
        return PagedKV(k, v, page_size)
    largest = 127 if dtype == torch.int8 else 448
    k_scale, v_scale = (x.abs().amax(-1) / largest for x in (k, v))
    k, v = k / k_scale[..., None], v / v_scale[..., None]
    if dtype == torch.int8:
        k, v = k.round(), v.round()
    k_scale, v_scale = (torch.where(used, x, torch.nan) for x in (k_scale, v_scale))
    return PagedKV(k.to(dtype), v.to(dtype), page_size, k_scale, v_scale)


def _generator(device: torch.device, seed: int) -> torch.Generator | None:
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)


def shared_prefix(q: Tensor, n_shared: int) -> tuple[SharedPrefixes, Parts]:
    """What rows are told when the first n_shared keys of all were read before, as one part."""
    queries, heads, head_dim = q.shape
    nothing = torch.zeros(1, dtype=torch.int32, device=q.device)
    each = torch.ones(queries, dtype=torch.int32, device=q.device)
    out = torch.randn(1, queries, heads, head_dim, device=q.device)
    lse = torch.randn(1, queries, heads, device=q.device)
    return SharedPrefixes(*8 * (nothing,), n_shared * each, each, 1), Parts(out, lse)
