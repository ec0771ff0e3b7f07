"""Decoding attention over pages is softmax attention, however the keys are cut, stored and quantised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.kernels.attention_decode import attention_decode, attention_decode_reference, cases
from engine.kernels.paged import PagedKV, Rows
from engine.kernels.tiles import Gpu, Tile, target

LIMIT = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SMALL = Tile({"BLOCK_N": 16, "LEAST": 32, "PROGRAMS": 8}, 4, 2)
ONE_EACH = Tile({"BLOCK_N": 16, "LEAST": 1 << 20, "PROGRAMS": 8}, 4, 2)
FEW = Gpu("", 90, 1)
"""A chip of one processor: the number of ranges is soon reached."""


def batch(
    lengths: Sequence[int],
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, PagedKV, Rows]:
    """Rows over a pool whose other slots are poisoned, their pages in any order, tables in another order than rows."""
    generator = torch.Generator().manual_seed(seed)
    n_pages = [-(-n // page_size) for n in lengths]
    total = sum(n_pages) + 3
    order = torch.randperm(total, generator=generator).int()
    tables = torch.full((len(lengths), max([*n_pages, 1]) + 1), 1 << 30, dtype=torch.int32)
    table = torch.randperm(len(lengths), generator=generator).int()
    used = torch.zeros(total * page_size, dtype=torch.bool)
    taken = 0
    for row, n in enumerate(lengths):
        pages = order[taken : taken + n_pages[row]]
        taken += n_pages[row]
        tables[table[row], : n_pages[row]] = pages
        positions = torch.arange(n)
        used[pages[positions // page_size].long() * page_size + positions % page_size] = True

    def pool() -> tuple[torch.Tensor, torch.Tensor | None]:
        x = torch.randn(kv_heads, total * page_size, head_dim, generator=generator)
        if kv_dtype is None:
            x[:, ~used] = torch.nan
            return x.to(device, dtype), None
        limit = 127 if kv_dtype == torch.int8 else 448
        scale = x.abs().amax(-1) / limit
        x = x / scale[..., None]
        stored = (x.round() if kv_dtype == torch.int8 else x).to(kv_dtype)
        scale[:, ~used] = torch.nan
        return stored.to(device), scale.to(device)

    (k, k_scale), (v, v_scale) = pool(), pool()
    q = torch.randn(len(lengths), heads, head_dim, generator=generator).to(device, dtype)
    n_keys = torch.tensor(lengths, dtype=torch.int32, device=device)
    first = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
    return q, PagedKV(k, v, page_size, k_scale, v_scale), Rows(tables.to(device), table.to(device), n_keys, first)


def exact(q: torch.Tensor, kv: PagedKV, rows: Rows, **options: Any) -> torch.Tensor:
    """The float64 reference on the very numbers that the kernel is given."""
    if kv.k_scale is None:
        kv = kv._replace(k=kv.k.double(), v=kv.v.double())
    return attention_decode_reference(q.double(), kv, rows, max_keys=0, **options)


def check(q: torch.Tensor, kv: PagedKV, rows: Rows, *, tile: Tile = SMALL, max_keys: int = 0, **options: Any) -> None:
    out = torch.full_like(q, torch.nan)
    most = max(max_keys, int(rows.n_keys.max()))
    attention_decode(q, kv, rows, max_keys=most, out=out, tile=tile, **options)
    expected = exact(q, kv, rows, **options)
    assert float((out.double() - expected).norm() / expected.norm()) < LIMIT[q.dtype]
    empty = rows.n_keys == 0
    assert (out[empty] == 0.0).all()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("page_size", [1, 3, 16])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(2, 2, 64), (8, 2, 80), (7, 1, 36), (8, 1, 128)])
def test_decode_is_softmax_attention(heads, kv_heads, head_dim, page_size, dtype, device) -> None:
    check(*batch([1, 0, 37, 100, 16], heads, kv_heads, head_dim, page_size, dtype, device))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 256), (17, 33), (3, 32)])
def test_any_head_size_and_group(heads, head_dim, device) -> None:
    check(*batch([5, 70], heads, 1, head_dim, 4, torch.bfloat16, device))


@pytest.mark.parametrize("seed", range(6))
def test_ragged_batches_are_cut_by_their_lengths(seed, device) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 200, (int(torch.randint(1, 9, (1,), generator=generator)),), generator=generator)
    lengths[0] = 1 + 300 * (seed % 2)
    with target(Gpu("", 90, 1 + seed)):
        check(
            *batch(lengths.tolist(), 2, 1, 64, 1 + seed % 4, torch.float32, device, seed=seed),
            max_keys=500 * (seed % 3),
        )


def test_one_range_or_many_give_the_same(device) -> None:
    q, kv, rows = batch([200, 33, 3], 4, 1, 64, 1, torch.float32, device)
    whole = attention_decode(q, kv, rows, max_keys=200, tile=ONE_EACH)
    with target(FEW):
        few = attention_decode(q, kv, rows, max_keys=200, tile=SMALL)
    many = attention_decode(q, kv, rows, max_keys=200, tile=SMALL)
    assert torch.allclose(whole, few, atol=1e-6)
    assert torch.allclose(whole, many, atol=1e-6)


def test_more_rows_than_are_looked_at_at_once(monkeypatch, device) -> None:
    monkeypatch.setattr("engine.kernels.attention_decode.AT_ONCE", 4)
    q, kv, rows = batch([0, 50, 1, 80, 0, 0, 0, 0, 90, 33], 1, 1, 32, 1, torch.float32, device)
    with target(FEW):
        check(q, kv, rows)
        check(q, kv, rows, tile=SMALL._replace(constants={**SMALL.constants, "PROGRAMS": 3}))


@pytest.mark.parametrize("window", [1, 16, 50, 1000])
def test_a_window_reads_only_the_last_keys(window, device) -> None:
    q, kv, rows = batch([1, 60, 0, 90], 2, 1, 64, 3, torch.float32, device)
    for row, n in enumerate([1, 60, 0, 90]):  # reading one key too early would show
        table = rows.tables[rows.table[row]]
        for p in range(max(0, n - window)):
            kv.k[:, table[p // 3] * 3 + p % 3] = torch.nan
    out = torch.full_like(q, torch.nan)
    attention_decode(q, kv, rows, max_keys=90, window=window, out=out, tile=SMALL)
    expected = exact(q, kv, rows, window=window)
    assert float((out.double() - expected).norm() / expected.norm()) < 1e-5


def test_soft_cap_bends_large_scores(device) -> None:
    q, kv, rows = batch([50, 7], 4, 2, 64, 1, torch.float32, device)
    check(q * 40, kv, rows, soft_cap=20.0)
    check(q * 0.01, kv, rows, soft_cap=50.0, scale=0.3)


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("dtype", LIMIT)
def test_a_quantised_pool_is_read_as_stored_times_scale(dtype, kv_dtype, device) -> None:
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    check(*batch([1, 45, 0, 80], 8, 2, 80, 3, dtype, device, kv_dtype=kv_dtype))


def test_a_launch_sized_for_long_contexts_is_right_for_short_ones(device) -> None:
    q, kv, rows = batch([40, 0, 3], 2, 2, 64, 1, torch.float32, device)
    with target(Gpu("", 90, 4)):
        check(q, kv, rows, max_keys=100_000)


def test_no_rows_is_nothing_to_do(device) -> None:
    q, kv, rows = batch([3], 2, 1, 64, 1, torch.float32, device)
    none = Rows(rows.tables, rows.table[:0], rows.n_keys[:0], rows.first[:1])
    assert attention_decode(q[:0], kv, none, max_keys=64).shape == (0, 2, 64)


def test_what_does_not_fit_is_refused(device) -> None:
    q, kv, rows = batch([3, 4], 2, 1, 64, 1, torch.float32, device)
    with pytest.raises(ValueError, match="one query a row"):
        attention_decode(torch.cat([q, q]), kv, rows, max_keys=4)
    with pytest.raises(ValueError, match="int32"):
        attention_decode(q, kv, rows._replace(n_keys=rows.n_keys.long()), max_keys=4)
    with pytest.raises(ValueError, match="negative"):
        attention_decode(q, kv, rows, max_keys=4, window=-1)


def test_cases_name_their_tiles() -> None:
    labels = [case.label for case in cases()]
    assert len(set(labels)) == len(labels)
    for case in cases():
        for capability in (80, 86, 90, 100):
            assert case.tiles.default(capability, case.shape) in case.tiles.candidates(capability, case.shape)
