"""Ragged batches over a scattered page table, for the tests of the attention kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels.paged import PagedKV, Rows

ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


class Batch(NamedTuple):
    q: Tensor
    kv: PagedKV
    rows: Rows


def make_batch(
    device: torch.device,
    lengths: Sequence[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 1,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Batch:
    """Rows of `lengths` (cached prefix, new tokens) each; slots that belong to nobody hold NaN (or huge scales)."""
    generator = torch.Generator().manual_seed(seed)
    kv_dtype = kv_dtype or dtype
    n_keys = [prefix + new for prefix, new in lengths]
    pages = [-(-n // page_size) for n in n_keys]
    n_pages = sum(pages) + 2
    shuffled = torch.randperm(n_pages, generator=generator).to(torch.int32)
    tables = torch.full((len(lengths), max(pages) + 1), n_pages + 1_000_000, dtype=torch.int32)
    used = torch.zeros(n_pages * page_size, dtype=torch.bool)
    at = 0
    for row, n in enumerate(pages):
        tables[row, :n] = shuffled[at : at + n]
        positions = torch.arange(n_keys[row])
        used[tables[row, positions // page_size].long() * page_size + positions % page_size] = True
        at += n
    k, v = (torch.randn(kv_heads, n_pages * page_size, head_dim, generator=generator) for _ in range(2))
    k[0, :, 0] += 1.0
    order = torch.randperm(len(lengths), generator=generator)
    first = torch.tensor([0, *(new for _, new in lengths)]).cumsum(0)
    q = torch.randn(int(first[-1]), heads, head_dim, generator=generator).to(dtype)
    rows = Rows(
        tables[order].contiguous().to(device),
        torch.argsort(order).to(torch.int32).to(device),
        torch.tensor(n_keys, dtype=torch.int32, device=device),
        first.to(torch.int32).to(device),
    )
    return Batch(q.to(device), _pool(k, v, used, page_size, kv_dtype, device), rows)


def _pool(k: Tensor, v: Tensor, used: Tensor, page_size: int, dtype: torch.dtype, device: torch.device) -> PagedKV:
    if dtype.itemsize > 1:
        k, v = (torch.where(used[:, None], x, torch.nan).to(dtype).to(device) for x in (k, v))
        return PagedKV(k, v, page_size)
    largest = 127.0 if dtype == torch.int8 else 448.0
    stored, scales = [], []
    for x in (k, v):
        scale = x.abs().amax(-1) / largest
        y = x / scale[..., None]
        stored.append((y.round() if dtype == torch.int8 else y).to(dtype).to(device))
        scales.append(torch.where(used, scale, torch.nan).to(device))
    return PagedKV(stored[0], stored[1], page_size, scales[0], scales[1])


def error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||; NaN if a query was left out."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm())
