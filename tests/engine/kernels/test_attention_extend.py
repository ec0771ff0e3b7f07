"""Extend attention against float64, over ragged batches in a scattered pool whose other slots hold NaN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.kernels.attention_example import Batch, prompt_rows
from engine.kernels.attention_extend import (
    TILES,
    ExtendItems,
    attention_extend,
    attention_extend_reference,
    cases,
    extend_block,
    plan_extend,
    work,
)
from engine.kernels.attention_merge import Parts
from engine.kernels.attention_tile import heads_packed
from engine.kernels.launch import recording
from engine.kernels.paged import SharedPrefixes
from engine.kernels.tiles import Gpu, Tile, choose, target

ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
TILE = Tile({"BLOCK_M": 16, "BLOCK_N": 16}, 4, 2)
RAGGED = [(0, 1), (5, 9), (0, 21), (40, 3), (31, 1), (16, 16)]
"""(cached prefix, new tokens): no prefix, one token, ends on both sides of a block of 16 keys."""


def make_batch(
    device: torch.device,
    lengths: list[tuple[int, int]],
    *,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 1,
    dtype: torch.dtype = torch.float32,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Batch:
    return prompt_rows(
        lengths,
        kv_heads=kv_heads,
        group=heads // kv_heads,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
        seed=seed,
    )


def extend_items(batch: Batch, block_m: int) -> ExtendItems:
    """The batch cut for tiles of that height."""
    block = block_m // heads_packed(batch.group, block_m)
    plan = plan_extend(batch.rows.first.diff().cpu().numpy(), block, batch.rows.n_keys.cpu().numpy())
    row, first = (torch.from_numpy(x).to(batch.q.device) for x in plan)
    return ExtendItems(row, first, block)


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference||; NaN if anything was left out."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm())


def check(batch: Batch, tile: Tile = TILE, **options: Any) -> None:
    """All of the output, poisoned before."""
    out = torch.full_like(batch.q, torch.nan)
    items = extend_items(batch, tile.constants["BLOCK_M"])
    attention_extend(batch.q, batch.kv, batch.rows, items, out=out, tile=tile, **options)
    reference = attention_extend_reference(batch.q.double(), batch.kv, batch.rows, **options)
    assert error(out, reference) < ERROR[batch.q.dtype]


@pytest.mark.parametrize("dtype", list(ERROR))
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size"), [(8, 2, 64, 1), (7, 1, 80, 16), (2, 2, 128, 5), (1, 1, 33, 4)]
)
def test_ragged_rows_see_their_prefix_and_themselves(
    device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, head_dim: int, page_size: int
) -> None:
    check(
        make_batch(device, RAGGED, heads=heads, kv_heads=kv_heads, head_dim=head_dim, page_size=page_size, dtype=dtype)
    )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 1), (7, 1), (4, 2)]),
    head_dim=st.integers(32, 72),
    page_size=st.sampled_from([1, 3, 16, 32]),
    window=st.sampled_from([0, 0, 1, 7, 30]),
    soft_cap=st.sampled_from([0.0, 0.0, 2.0]),
    scale=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 99),
)
def test_any_batch(
    device: torch.device,
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    page_size: int,
    window: int,
    soft_cap: float,
    scale: float | None,
    seed: int,
) -> None:
    batch = make_batch(
        device, lengths, heads=heads[0], kv_heads=heads[1], head_dim=head_dim, page_size=page_size, seed=seed
    )
    check(batch, window=window, soft_cap=soft_cap, scale=scale)


@pytest.mark.parametrize("window", [1, 5, 16, 17, 40])
def test_a_window_hides_what_is_older(device: torch.device, window: int) -> None:
    check(make_batch(device, RAGGED, heads=2, kv_heads=1, page_size=16), window=window)


def test_a_window_as_long_as_the_row_hides_nothing(device: torch.device) -> None:
    batch = make_batch(device, RAGGED)
    items = extend_items(batch, 16)
    plain, windowed = (
        attention_extend(batch.q, batch.kv, batch.rows, items, window=window, tile=TILE) for window in (0, 1000)
    )
    assert torch.equal(plain, windowed)


def test_a_soft_cap_bends_large_scores_only(device: torch.device) -> None:
    batch = make_batch(device, [(20, 12)], heads=1, kv_heads=1)
    check(batch, soft_cap=3.0, scale=2.0)
    items = extend_items(batch, 16)
    plain = attention_extend(batch.q, batch.kv, batch.rows, items, scale=2.0, tile=TILE)
    bent = attention_extend(batch.q, batch.kv, batch.rows, items, scale=2.0, soft_cap=3.0, tile=TILE)
    barely = attention_extend(batch.q, batch.kv, batch.rows, items, scale=2.0, soft_cap=1e4, tile=TILE)
    assert error(bent, plain) > 0.1
    assert error(barely, plain) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_pool_is_read_through_its_scales(
    device: torch.device, dtype: torch.dtype, kv_dtype: torch.dtype
) -> None:
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    check(make_batch(device, RAGGED[1:4], page_size=3, dtype=dtype, kv_dtype=kv_dtype))


def test_a_group_larger_than_the_tile_is_shared_out(device: torch.device) -> None:
    check(make_batch(device, [(3, 2), (0, 5)], heads=40, kv_heads=1, head_dim=32))
    check(make_batch(device, [(3, 2)], heads=34, kv_heads=2, head_dim=32))


@pytest.mark.parametrize(("block_m", "block_n"), [(32, 16), (16, 64), (64, 32)])
def test_any_tile(device: torch.device, block_m: int, block_n: int) -> None:
    check(
        make_batch(device, [(70, 40), (0, 9)], heads=3, kv_heads=1, page_size=64),
        Tile({"BLOCK_M": block_m, "BLOCK_N": block_n}, 4, 2),
    )


def test_the_chosen_tile(device: torch.device) -> None:
    batch = make_batch(device, [(100, 60), (0, 5)], heads=2, kv_heads=1, page_size=16, dtype=torch.bfloat16)
    block = extend_block(64, torch.bfloat16, 2)
    out = torch.full_like(batch.q, torch.nan)
    attention_extend(batch.q, batch.kv, batch.rows, extend_items(batch, 2 * block), out=out)
    assert error(out, attention_extend_reference(batch.q.double(), batch.kv, batch.rows)) < ERROR[torch.bfloat16]


def test_items_may_be_padded(device: torch.device) -> None:
    batch = make_batch(device, [(5, 9), (0, 3)])
    items = extend_items(batch, 16)
    row, first = (torch.cat((x, torch.full_like(x[:3], -1))) for x in (items.row, items.first))
    padded = attention_extend(batch.q, batch.kv, batch.rows, ExtendItems(row, first, items.block), tile=TILE)
    assert torch.equal(padded, attention_extend(batch.q, batch.kv, batch.rows, items, tile=TILE))


def test_queries_without_an_item_are_left_alone(device: torch.device) -> None:
    batch = make_batch(device, [(5, 9), (0, 3)])
    items = extend_items(batch, 16)
    keep = (items.row == 1).nonzero()[:, 0]
    out = torch.full_like(batch.q, 7.0)
    some = ExtendItems(items.row[keep], items.first[keep], items.block)
    attention_extend(batch.q, batch.kv, batch.rows, some, out=out, tile=TILE)
    assert bool((out[:9] == 7.0).all())
    assert error(out[9:], attention_extend_reference(batch.q.double(), batch.kv, batch.rows)[9:]) < 1e-5


@pytest.mark.parametrize("n_shared", [1, 16, 21])
def test_partial_results_of_a_shared_prefix_are_merged_in(device: torch.device, n_shared: int) -> None:
    """Row 1's first keys are left to two parts, row 2's to one, row 0's to none; what no part fills is NaN."""
    batch = make_batch(device, [(5, 4), (30, 9), (24, 6)], heads=4, kv_heads=2)
    row_of = torch.repeat_interleave(torch.arange(3), batch.rows.first.cpu().diff().long()).to(device)
    n_parts = torch.tensor([0, 2, 1], device=device)[row_of]
    shared = SharedPrefixes(*8 * (row_of,), torch.where(n_parts > 0, n_shared, 0).int(), n_parts.int(), 2)
    parts = Parts(
        torch.full((2, *batch.q.shape), torch.nan, device=device),
        torch.full((2, *batch.q.shape[:2]), torch.nan, device=device),
    )
    for row, pieces in ((1, ((0, n_shared // 2), (n_shared // 2, n_shared))), (2, ((0, n_shared),))):
        for part, (begin, end) in enumerate(pieces):
            queries = (row_of == row).nonzero()[:, 0]
            out, lse = attention_over(batch, row, queries, begin, end)
            parts.out[part, queries], parts.lse[part, queries] = out.float(), lse.float()
    out = torch.full_like(batch.q, torch.nan)
    items = extend_items(batch, 16)
    attention_extend(batch.q, batch.kv, batch.rows, items, shared=shared, parts=parts, out=out, tile=TILE)
    whole = attention_extend_reference(batch.q.double(), batch.kv, batch.rows)
    assert error(out, whole) < ERROR[torch.float32]
    merged = attention_extend_reference(batch.q.double(), batch.kv, batch.rows, shared=shared, parts=parts)
    assert error(merged, whole) < ERROR[torch.float32]


def attention_over(
    batch: Batch, row: int, queries: torch.Tensor, begin: int, end: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and log-sum-exp of some queries over the keys begin .. end of a row; (NaN, -inf) over none."""
    table = batch.rows.tables[batch.rows.table[row]].long()
    group = batch.q.shape[1] // batch.kv.k.shape[0]
    k, v = (x[:, table[begin:end]].double().repeat_interleave(group, 0) for x in (batch.kv.k, batch.kv.v))
    scores = torch.einsum("thd,hkd->thk", batch.q[queries].double(), k) * batch.q.shape[2] ** -0.5
    out = torch.einsum("thk,hkd->thd", scores.softmax(-1), v)
    return (out if begin < end else torch.full_like(out, torch.nan)), scores.logsumexp(-1)


def test_the_plan_covers_every_query_once_the_longest_walk_first() -> None:
    n_queries, n_keys = np.array([1, 40, 16, 0, 33]), np.array([500, 40, 80, 7, 1000])
    row, first = plan_extend(n_queries, 16, n_keys)
    covered = sorted((int(r), t) for r, f in zip(row, first, strict=True) for t in range(f, min(f + 16, n_queries[r])))
    assert covered == [(r, t) for r, n in enumerate(n_queries) for t in range(n)]
    walk = (n_keys - n_queries)[row] + np.minimum(first + 16, n_queries[row])
    assert list(walk) == sorted(walk, reverse=True)
    assert row.dtype == first.dtype == np.int32


def test_the_plan_of_nothing_launches_nothing(device: torch.device) -> None:
    row, first = plan_extend(np.zeros(0, dtype=np.int64), 16)
    assert len(row) == len(first) == 0


@pytest.mark.parametrize("capability", [80, 86, 90, 100])
@pytest.mark.parametrize("group", [1, 4, 7, 71])
def test_a_block_of_tokens_fills_the_tile(capability: int, group: int) -> None:
    with target(Gpu("", capability, 100)):
        for head_dim in (32, 64, 80, 128, 256):
            for dtype in ERROR:
                name = str(dtype).removeprefix("torch.")
                shape = {"head_dim": head_dim, "dtype": name, "group": group, "kv": name}
                block_m = choose(TILES, shape).constants["BLOCK_M"]
                block, heads = extend_block(head_dim, dtype, group), heads_packed(group, block_m)
                assert block * heads <= block_m < (block + 1) * heads
                assert heads >= min(group, block_m // 2), "a group is split only where it must be"


def test_work_counts_visible_pairs_and_keys(device: torch.device) -> None:
    batch = make_batch(device, [(5, 3), (0, 2)], heads=4, kv_heads=2, head_dim=64, dtype=torch.bfloat16)
    pairs = (6 + 7 + 8) + (1 + 2)
    q_out = 2 * 5 * 4 * 64 * 2
    assert work(batch.q, batch.kv, [3, 2], [8, 2]) == (q_out + (8 + 2) * 2 * 2 * 64 * 2, 4 * pairs * 4 * 64)
    windowed = work(batch.q, batch.kv, [3, 2], [8, 2], window=2)
    assert windowed == (q_out + (4 + 2) * 2 * 2 * 64 * 2, 4 * (6 + 3) * 4 * 64)


def test_cases_launch_on_tensors_without_memory() -> None:
    for case in cases():
        with target(Gpu("", 90, 132)), recording() as launches:
            case.make(torch.device("meta"))(None)
        assert [launch.kernel.__name__ for launch in launches] == ["_extend"], case.label


def refused(batch: Batch, message: str, **options: Any) -> None:
    items = options.pop("items", None) or extend_items(batch, 16)
    with pytest.raises(ValueError, match=message):
        attention_extend(batch.q, batch.kv, batch.rows, items, **{"tile": TILE, **options})


def test_what_does_not_fit_is_refused_with_what_to_do(device: torch.device) -> None:
    batch = make_batch(device, [(2, 3)])
    items = extend_items(batch, 16)
    refused(batch, r"plan with extend_block", items=items._replace(block=9))
    refused(batch, r"window is -1", window=-1)
    refused(batch, r"scale must be above 0", scale=-1.0)
    refused(batch, r"out must be like q", out=batch.q.double())
    refused(batch, r"shared and parts go together", parts=Parts(batch.q, batch.q))
    refused(batch._replace(q=batch.q.half()), r"the pool is torch.float32, q torch.float16")
    refused(batch._replace(q=batch.q[:, :3].contiguous()), r"3 query heads can't share 2 kv heads")
    refused(batch._replace(q=batch.q[:, :, :48].contiguous()), r"head_dim of q is 48, of the pool 64")
    refused(batch._replace(q=batch.q.transpose(0, 1)), r"q must be contiguous")
    int8 = make_batch(device, [(2, 3)], kv_dtype=torch.int8)
    refused(int8._replace(kv=int8.kv._replace(k_scale=None)), r"needs k_scale and v_scale")
