"""Random inputs for the attention kernels: rows of given lengths over a pool whose pages lie in random order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels.kv_load import gather_kv
from engine.kernels.paged import PagedKV, Rows

BF16 = torch.bfloat16


class Shape(NamedTuple):
    heads: int
    kv_heads: int
    head_dim: int
    page_size: int = 1
    kv_dtype: torch.dtype = BF16

    @property
    def quantised(self) -> bool:
        return self.kv_dtype.itemsize == 1

    def __str__(self) -> str:
        kv = "" if self.kv_dtype == BF16 else f", {str(self.kv_dtype).removeprefix('torch.')} KV"
        return f"heads {self.heads}/{self.kv_heads}, pages of {self.page_size}{kv}"


class Inputs(NamedTuple):
    q: Tensor
    """[queries, heads, head_dim], bfloat16."""
    kv: PagedKV
    rows: Rows
    out: Tensor


def inputs(
    shape: Shape, new: Sequence[int], keys: Sequence[int], device: torch.device, *, shared_pages: int = 0
) -> Inputs:
    """Rows of new[i] queries that end a context of keys[i] tokens.

    shared_pages: that many first pages of all rows are the very same ones.
    """
    page_size = shape.page_size
    pages = [-(-n // page_size) for n in keys]
    own = [n - shared_pages for n in pages]
    order = torch.randperm(shared_pages + sum(own), device=device, dtype=torch.int64).int()
    tables = torch.zeros(len(keys), max(pages), dtype=torch.int32, device=device)
    at = shared_pages
    for i, n in enumerate(own):
        tables[i, :shared_pages] = order[:shared_pages]
        tables[i, shared_pages : shared_pages + n] = order[at : at + n]
        at += n
    first = torch.tensor([0, *new], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    rows = Rows(
        tables,
        torch.arange(len(keys), dtype=torch.int32, device=device),
        torch.tensor(keys, dtype=torch.int32, device=device),
        first,
    )
    q = torch.randn(sum(new), shape.heads, shape.head_dim, device=device, dtype=BF16)
    return Inputs(q, pool(shape, at * page_size, device), rows, torch.empty_like(q))


def pool(shape: Shape, slots: int, device: torch.device) -> PagedKV:
    """One layer's K and V, normally distributed also where they are quantised."""
    size = (shape.kv_heads, slots, shape.head_dim)
    numbers = [torch.randn(size, device=device, dtype=BF16) for _ in range(2)]
    if not shape.quantised:
        return PagedKV(numbers[0], numbers[1], shape.page_size)
    largest = 127.0 if shape.kv_dtype == torch.int8 else 448.0
    stored, scales = [], []
    for x in numbers:
        scale = x.abs().amax(-1).float() / largest
        y = x.float() / scale[..., None]
        stored.append((y.round() if shape.kv_dtype == torch.int8 else y).to(shape.kv_dtype))
        scales.append(scale)
    return PagedKV(stored[0], stored[1], shape.page_size, scales[0], scales[1])


def contiguous(given: Inputs, row: int, n_keys: int) -> tuple[Tensor, Tensor]:
    """K and V of a row as [kv heads, keys, head_dim], for those who can't read pages."""
    return gather_kv(given.kv, given.rows.tables[row], n_keys, BF16)
