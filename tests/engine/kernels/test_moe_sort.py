"""Pairs sorted by expert are those of a stable sort, however many there are."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kernels import moe_sort
from engine.kernels.moe_sort import Groups, sort_by_expert


def tiles_of(groups: Groups) -> list[list[int]]:
    return [tile for tile in groups.tiles.tolist() if tile[0] >= 0]


def check(chosen: Tensor, experts: int, rows: int) -> None:
    pairs = chosen.reshape(-1).cpu()
    exists = (pairs >= 0) & (pairs < experts)
    groups = sort_by_expert(chosen, experts, rows)
    expected = torch.where(exists, pairs, experts).sort(stable=True).indices[: int(exists.sum())]
    assert torch.equal(groups.order[: len(expected)].cpu().long(), expected)
    end, tiles = 0, []
    for expert in range(experts):
        first, end = end, end + int((pairs == expert).sum())
        tiles += [[expert, at, end] for at in range(first, end, rows)]
    assert tiles_of(groups) == tiles
    assert (groups.tiles[len(tiles) :, 0] == -1).all()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize(("tokens", "k", "experts"), [(1, 1, 1), (1, 8, 8), (33, 2, 8), (100, 3, 5), (40, 6, 60)])
def test_pairs_are_in_their_experts_order(
    dtype: torch.dtype, tokens: int, k: int, experts: int, device: torch.device
) -> None:
    chosen = torch.rand(tokens, experts, generator=torch.Generator().manual_seed(k)).topk(k, dim=1).indices
    check(chosen.to(device, dtype), experts, 16)


@pytest.mark.parametrize("tokens", [7, 40, 61])
def test_programs_that_share_the_pairs_place_them_as_one_does(
    tokens: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = torch.randint(0, 5, (tokens, 3), generator=torch.Generator().manual_seed(tokens)).to(device)
    alone = sort_by_expert(chosen, 5, 16)
    monkeypatch.setattr(moe_sort, "ALONE", 8)
    monkeypatch.setattr(moe_sort, "ONE_HOT", 64)  # pieces of 16 pairs
    monkeypatch.setattr(moe_sort, "PROGRAMS", 4)
    together = sort_by_expert(chosen, 5, 16)
    assert torch.equal(alone.order, together.order)
    assert tiles_of(alone) == tiles_of(together)
    check(chosen, 5, 16)


def test_many_pairs_are_sorted(device: torch.device) -> None:
    chosen = torch.randint(0, 8, (1500, 2), generator=torch.Generator().manual_seed(0)).to(device)
    assert chosen.numel() > moe_sort.ALONE
    check(chosen, 8, 64)


def test_experts_that_dont_exist_have_no_place(device: torch.device) -> None:
    chosen = torch.tensor([[0, 3], [-1, 2], [7, 0], [2**32, 1], [2, 2]], device=device)
    check(chosen, 3, 16)
