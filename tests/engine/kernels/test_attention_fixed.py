"""Deterministic attention: right, and the same bits in any company, chunking and state of the cache."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

from engine.kernels.attention_example import Batch, prompt_rows
from engine.kernels.attention_extend import ExtendItems, plan_extend
from engine.kernels.attention_fixed import (
    attention_fixed_split,
    attention_fixed_split_reference,
    cases,
    fixed_block,
    work,
)
from engine.kernels.launch import recording
from engine.kernels.paged import PagedKV
from engine.kernels.tiles import Gpu, Tile, target

ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
TILE = Tile({"BLOCK_M": 16, "BLOCK_N": 16, "SPLIT": 32}, 4, 2)
GROUP = 2
BLOCK = 16 // GROUP


@pytest.fixture(autouse=True, scope="module")
def products_whose_order_depends_on_nothing() -> Iterator[None]:
    """The interpreter leaves products to NumPy's BLAS, which on some CPUs adds up in another order for another number
    of rows. A GPU's matrix units don't: here every element is added up from its first term to its last."""
    if torch.cuda.is_available():
        yield
        return

    def matmul(a: np.ndarray, b: np.ndarray, dtype: Any) -> np.ndarray:
        total = np.zeros((*a.shape[:-1], b.shape[-1]), dtype)
        for k in range(a.shape[-1]):
            total += a[..., k : k + 1].astype(dtype) * b[..., k : k + 1, :].astype(dtype)
        return total

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "np", SimpleNamespace(**{**vars(np), "matmul": matmul}))
        yield


def attention(batch: Batch, **options: Any) -> Tensor:
    """All of the output, poisoned before."""
    out = torch.full_like(batch.q, torch.nan)
    n_queries, n_keys = batch.rows.first.diff().cpu().numpy(), batch.rows.n_keys.cpu().numpy()
    row, first = (torch.from_numpy(x).to(out.device) for x in plan_extend(n_queries, 16 // batch.group, n_keys))
    items = ExtendItems(row, first, 16 // batch.group)
    options = {"tile": TILE, "max_keys": int(n_keys.max()), **options}
    return attention_fixed_split(batch.q, batch.kv, batch.rows, items, out=out, **options)


def error(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference||; NaN if anything was left out."""
    return float((out.double() - reference.double()).norm() / reference.double().norm())


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "group", "head_dim", "page_size", "options"),
    [
        (torch.float32, torch.float32, 4, 64, 1, {}),
        (torch.float32, torch.float32, 1, 80, 16, {"window": 20, "soft_cap": 5.0}),
        (torch.float16, torch.float16, 7, 64, 5, {"window": 40}),
        (torch.bfloat16, torch.bfloat16, 1, 128, 32, {"scale": 0.2}),
        (torch.bfloat16, torch.int8, 4, 64, 16, {"soft_cap": 20.0}),
        (torch.float16, torch.float8_e4m3fn, 1, 64, 1, {"window": 33}),
    ],
)
def test_ragged_rows_against_float64(
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    group: int,
    head_dim: int,
    page_size: int,
    options: dict[str, Any],
    parallel: bool,
) -> None:
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    batch = prompt_rows(
        [(0, 1), (63, 1), (70, 9), (0, 34), (32, 3)],
        kv_heads=1,
        group=group,
        head_dim=head_dim,
        page_size=page_size,
        dtype=dtype,
        kv_dtype=kv_dtype,
        device=device,
    )
    reference = attention_fixed_split_reference(batch.q.double(), batch.kv, batch.rows, **options)
    assert error(attention(batch, parallel=parallel, **options), reference) < ERROR[dtype]


class Request:
    """One request whose every token has its q, k and v, so that it can be computed in any pieces."""

    def __init__(self, device: torch.device, n_tokens: int, dtype: torch.dtype, kv_dtype: torch.dtype, seed: int):
        whole = prompt_rows(
            [(0, n_tokens)],
            kv_heads=1,
            group=GROUP,
            head_dim=64,
            page_size=1,
            dtype=dtype,
            kv_dtype=kv_dtype,
            device=device,
            seed=seed,
        )
        self.whole = whole
        self.slots = whole.rows.tables[0, :n_tokens].long()

    def rows(self, pieces: list[tuple[int, int]], others: list[tuple[int, int]], seed: int = 0) -> Batch:
        """A batch of rows that are this request's tokens begin .. end each, with other requests' rows before, between
        and after them, in a pool where every token lies elsewhere than in `whole`."""
        page_size = 4
        company = prompt_rows(
            [(0, 1), *others, *pieces_as_lengths(pieces)],
            kv_heads=1,
            group=GROUP,
            head_dim=64,
            page_size=page_size,
            dtype=self.whole.q.dtype,
            kv_dtype=self.whole.kv.k.dtype,
            device=self.whole.q.device,
            seed=seed + 1,
        )
        first = company.rows.first.tolist()
        for piece, (begin, end) in enumerate(pieces):
            row = 1 + len(others) + piece
            table = company.rows.tables[company.rows.table[row]].long()
            position = torch.arange(end, device=table.device)
            slots = table[position // page_size] * page_size + position % page_size
            for mine, theirs in zip(tensors(self.whole.kv), tensors(company.kv), strict=True):
                theirs[:, slots] = mine[:, self.slots[:end]]
            company.q[first[row] : first[row + 1]] = self.whole.q[begin:end]
        return company


def tensors(kv: PagedKV) -> list[Tensor]:
    return [
        x.view(torch.uint8) if x.itemsize == 1 else x for x in (kv.k, kv.v, kv.k_scale, kv.v_scale) if x is not None
    ]


def pieces_as_lengths(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    return [(begin, end - begin) for begin, end in pieces]


def same_bits(
    device: torch.device,
    dtype: torch.dtype,
    cuts: list[int],
    others: list[tuple[int, int]],
    kv_dtype: torch.dtype | None = None,
    **options: Any,
) -> None:
    """The request alone and at once, one split after the other; then in pieces and company, both ways."""
    n_tokens = cuts[-1]
    request = Request(device, n_tokens, dtype, kv_dtype or dtype, seed=n_tokens)
    alone = attention(request.whole, parallel=False, **options)
    assert torch.isfinite(alone).all()
    batch = request.rows(list(zip([0, *cuts], cuts, strict=False)), others)
    for parallel in (False, True):
        out = attention(batch, parallel=parallel, **options)
        assert torch.equal(out[-n_tokens:], alone)


@pytest.mark.parametrize("dtype", list(ERROR))
def test_a_prompt_at_once_and_in_chunks(device: torch.device, dtype: torch.dtype) -> None:
    same_bits(device, dtype, [7, 8, 40, 64, 75], [])


@pytest.mark.parametrize("dtype", list(ERROR))
def test_tokens_computed_one_by_one_as_in_decoding(device: torch.device, dtype: torch.dtype) -> None:
    same_bits(device, dtype, [62, 63, 64, 65, 66], [(33, 1), (0, 5)])


def test_in_a_large_batch(device: torch.device) -> None:
    same_bits(device, torch.float32, [40], [(80, 1), (3, 19), (0, 1), (64, 3)])


@pytest.mark.parametrize("options", [{"window": 9}, {"window": 40}, {"soft_cap": 3.0}, {"window": 33, "soft_cap": 2.0}])
def test_with_a_window_and_a_soft_cap(device: torch.device, options: dict[str, Any]) -> None:
    same_bits(device, torch.float32, [5, 50, 51, 70], [(20, 2)], **options)


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
def test_with_a_quantised_pool(device: torch.device, kv_dtype: torch.dtype) -> None:
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    same_bits(device, torch.bfloat16, [30, 31, 69], [(20, 2)], kv_dtype=kv_dtype)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
    sizes=st.lists(st.integers(1, 34), min_size=1, max_size=4),
    others=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), max_size=3),
    window=st.sampled_from([0, 0, 12]),
)
def test_any_pieces_in_any_company(
    device: torch.device, sizes: list[int], others: list[tuple[int, int]], window: int
) -> None:
    cuts = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    same_bits(device, torch.float16, cuts, others, window=window)


def test_bits_do_depend_on_where_keys_are_split(device: torch.device) -> None:
    """So equal bits above are no accident of sums that come out alike in any order."""
    request = Request(device, 75, torch.float32, torch.float32, seed=0)
    tiles = [Tile({**TILE.constants, "SPLIT": split}, 4, 2) for split in (16, 32)]
    one, other = (attention(request.whole, tile=tile, parallel=False) for tile in tiles)
    assert not torch.equal(one, other)
    assert error(one, other) < 1e-6


def test_a_padded_item_is_nothing(device: torch.device) -> None:
    batch = Request(device, 20, torch.float32, torch.float32, seed=0).whole
    row, first = (torch.from_numpy(x).to(device) for x in plan_extend(batch.rows.first.diff().cpu().numpy(), BLOCK))
    padding = torch.full((2,), -1, dtype=torch.int32, device=device)
    items = ExtendItems(torch.cat((row, padding)), torch.cat((first, padding)), BLOCK)
    for parallel in (False, True):
        out = torch.full_like(batch.q, torch.nan)
        attention_fixed_split(batch.q, batch.kv, batch.rows, items, out=out, tile=TILE, parallel=parallel)
        assert torch.equal(out, attention(batch))


def test_the_chosen_tile(device: torch.device) -> None:
    batch = prompt_rows(
        [(600, 2), (0, 5)], kv_heads=1, group=2, head_dim=64, page_size=16, dtype=torch.bfloat16, device=device
    )
    block = fixed_block(64, torch.bfloat16, 2)
    row, first = (torch.from_numpy(x).to(device) for x in plan_extend(batch.rows.first.diff().cpu().numpy(), block))
    out = attention_fixed_split(batch.q, batch.kv, batch.rows, ExtendItems(row, first, block))
    assert error(out, attention_fixed_split_reference(batch.q.double(), batch.kv, batch.rows)) < ERROR[torch.bfloat16]


def test_cases_launch_on_tensors_without_memory() -> None:
    for case in cases():
        with target(Gpu("", 90, 132)), recording() as launches:
            case.make(torch.device("meta"))(None)
        names = [launch.kernel.__name__ for launch in launches]
        assert names == (["_fixed", "_fixed_merge"] if "decode" in case.label else ["_fixed"]), case.label


def test_splits_go_side_by_side_only_where_processors_would_idle() -> None:
    def launches(n_rows: int, max_keys: int) -> int:
        batch = prompt_rows(
            [(max_keys - 1, 1)] * n_rows,
            kv_heads=8,
            group=4,
            head_dim=128,
            page_size=16,
            dtype=torch.bfloat16,
            device=torch.device("meta"),
        )
        of_rows = torch.empty(n_rows, dtype=torch.int32, device="meta")
        items = ExtendItems(of_rows, of_rows, 1)
        with target(Gpu("", 90, 132)), recording() as launched:
            attention_fixed_split(batch.q, batch.kv, batch.rows, items, max_keys=max_keys)
        return len(launched)

    assert launches(1, 4096) == 2
    assert launches(1, 100) == 1
    assert launches(128, 4096) == 1


def test_work_is_that_of_extend_attention(device: torch.device) -> None:
    batch = Request(device, 3, torch.float32, torch.float32, seed=0).whole
    assert work(batch.q, batch.kv, [3], [3]).operations == 4 * 6 * GROUP * 64


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    batch = Request(device, 3, torch.float32, torch.float32, seed=0).whole
    items = ExtendItems(batch.rows.table, batch.rows.table, BLOCK + 1)
    with pytest.raises(ValueError, match="plan with fixed_block"):
        attention_fixed_split(batch.q, batch.kv, batch.rows, items, tile=TILE)
    with pytest.raises(ValueError, match="multiple of BLOCK_N"):
        attention(batch, tile=Tile({**TILE.constants, "SPLIT": 40}))
    with pytest.raises(ValueError, match="window is -2"):
        attention(batch, window=-2)
    with pytest.raises(ValueError, match="out must be like q"):
        attention_fixed_split(batch.q, batch.kv, batch.rows, items._replace(block=1), out=batch.q[:1], tile=TILE)
