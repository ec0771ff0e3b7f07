"""Partial attention results merge into the whole, whatever the order and the number of pieces."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.attention_merge import Parts, Splits, attention_merge, attention_merge_reference
from engine.kernels.tiles import Tile

LIMIT = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def pieces_of(counts: list[int], heads: int, head_dim: int, seed: int, device: torch.device) -> Splits:
    generator = torch.Generator().manual_seed(seed)
    n = sum(counts) + 2
    first = torch.tensor([1, *counts]).cumsum(0)[:-1]  # a piece of nobody at each end
    out, lse = torch.randn(n, heads, head_dim, generator=generator), 20 * torch.randn(n, heads, generator=generator)
    out[0], out[-1], lse[0], lse[-1] = torch.nan, torch.nan, torch.nan, torch.nan
    return Splits(
        out.to(device), lse.to(device), first.int().to(device), torch.tensor(counts, dtype=torch.int32, device=device)
    )


def parts_of(
    counts: list[int], heads: int, head_dim: int, seed: int, device: torch.device
) -> tuple[Parts, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (max(counts) + 1, len(counts), heads)
    out, lse = torch.randn(*shape, head_dim, generator=generator), 5 * torch.randn(*shape, generator=generator)
    for query, count in enumerate(counts):
        out[count:, query], lse[count:, query] = torch.nan, torch.nan
    return Parts(out.to(device), lse.to(device)), torch.tensor(counts, dtype=torch.int32, device=device)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize(
    ("heads", "head_dim", "splits", "parts"),
    [
        (3, 64, [1, 5, 2], None),
        (2, 80, None, [1, 3, 2]),
        (2, 36, [3, 1, 0, 9], [0, 2, 5, 1]),
        (1, 256, [17], [9]),
        (4, 33, [1, 1], [1, 1]),
    ],
)
def test_merge_is_the_reference(dtype, heads, head_dim, splits, parts, device) -> None:
    n = len(splits or parts)
    own = pieces_of(splits, heads, head_dim, 0, device) if splits else None
    prefix, counts = parts_of(parts, heads, head_dim, 1, device) if parts else (None, None)
    out = torch.full((n, heads, head_dim), torch.nan, dtype=dtype, device=device)
    expected = torch.full((n, heads, head_dim), torch.nan, dtype=torch.float64, device=device)
    attention_merge(prefix, counts, out=out, splits=own, tile=Tile({"BLOCK_P": 4}))
    attention_merge_reference(prefix, counts, out=expected, splits=own)
    assert error(out, expected) < LIMIT[dtype]


def test_pieces_of_softmax_merge_into_softmax(device) -> None:
    generator = torch.Generator().manual_seed(3)
    scores = 30 * torch.randn(2, 3, 29, generator=generator, dtype=torch.float64)  # [queries, heads, keys]
    v = torch.randn(3, 29, 64, generator=generator, dtype=torch.float64)
    expected = torch.einsum("qhk,hkd->qhd", scores.softmax(-1), v)
    cuts = [slice(0, 1), slice(1, 20), slice(20, 29)]
    parts = Parts(
        torch.stack([torch.einsum("qhk,hkd->qhd", scores[..., c].softmax(-1), v[:, c]) for c in cuts])
        .float()
        .to(device),
        torch.stack([scores[..., c].logsumexp(-1) for c in cuts]).float().to(device),
    )
    out = torch.full((2, 3, 64), torch.nan, device=device)
    attention_merge(parts, torch.tensor([3, 3], dtype=torch.int32, device=device), out=out)
    assert error(out.cpu(), expected) < 1e-5


def test_a_query_with_nothing_to_merge_keeps_what_it_has(device) -> None:
    own = pieces_of([0, 2], 2, 64, 0, device)
    parts, counts = parts_of([0, 1], 2, 64, 1, device)
    out = torch.full((2, 2, 64), 7.0, device=device)
    attention_merge(parts, counts, out=out, splits=own)
    assert (out[0] == 7.0).all()
    assert (out[1] != 7.0).all()


def test_a_piece_without_keys_weighs_nothing_whatever_it_holds(device) -> None:
    parts, counts = parts_of([2, 2], 2, 64, 1, device)
    alone = torch.empty(2, 2, 64, device=device)
    attention_merge(parts, torch.ones_like(counts), out=alone)
    parts.lse[1], parts.out[1] = -torch.inf, torch.nan
    out = torch.full_like(alone, torch.nan)
    attention_merge(parts, counts, out=out)
    assert torch.allclose(out, alone, rtol=1e-6)
    parts.lse[0], parts.out[0] = -torch.inf, torch.nan
    attention_merge(parts, counts, out=out)
    assert (out == 0.0).all()


def test_what_does_not_belong_together_is_refused(device) -> None:
    parts, counts = parts_of([1, 2], 2, 64, 1, device)
    out = torch.empty(2, 2, 64, device=device)
    with pytest.raises(ValueError, match="go together"):
        attention_merge(parts, None, out=out)
    with pytest.raises(ValueError, match="nothing to merge"):
        attention_merge(None, None, out=out)
    with pytest.raises(ValueError, match="int32"):
        attention_merge(parts, counts.long(), out=out)
    with pytest.raises(ValueError, match="max_parts"):
        attention_merge(parts, counts, out=out[:, :1].contiguous())
