"""The activation kernel against float64."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.silu_mul import TILES, _shape, silu_mul, silu_mul_reference
from engine.kernels.tiles import Tile

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("tokens", "inner"), [(1, 1), (1, 11008), (3, 1024), (5, 1025), (2, 77)])
def test_matches_float64(dtype: torch.dtype, tokens: int, inner: int, device: torch.device) -> None:
    gate_up = (4 * torch.randn(tokens, 2 * inner, generator=torch.Generator().manual_seed(inner))).to(device, dtype)
    out = torch.full((tokens, inner), torch.nan, device=device, dtype=dtype)
    assert silu_mul(gate_up, out=out) is out
    reference = silu_mul_reference(gate_up.double())
    assert (out.double() - reference).norm() / reference.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("block", [256, 512, 2048])
def test_the_tile_doesnt_change_the_result(block: int, device: torch.device) -> None:
    gate_up = torch.randn(2, 2 * 700, generator=torch.Generator().manual_seed(1)).to(device)
    assert torch.equal(silu_mul(gate_up, tile=Tile({"BLOCK": block}, 2, 1)), silu_mul(gate_up))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the interpreter's
def test_extreme_gates_saturate_instead_of_overflowing(device: torch.device) -> None:
    gate = torch.tensor([[-3e38, -1e4, -100.0, -0.0, 0.0, 100.0, 1e4, 3e37]], device=device)
    y = silu_mul(torch.cat([gate, torch.ones_like(gate)], dim=1))
    torch.testing.assert_close(y, gate.clamp(min=0), rtol=1e-6, atol=1e-30)


def test_rows_may_be_parts_of_wider_ones(device: torch.device) -> None:
    wide = torch.randn(3, 100, generator=torch.Generator().manual_seed(2)).to(device)
    out = torch.full((3, 50), torch.nan, device=device)
    silu_mul(wide[:, 10:90], out=out[:, 5:45])
    assert torch.equal(out[:, 5:45], silu_mul(wide[:, 10:90].contiguous()))
    assert out[:, :5].isnan().all()
    assert out[:, 45:].isnan().all()


def test_no_tokens_are_no_work(device: torch.device) -> None:
    assert silu_mul(torch.empty(0, 64, device=device)).shape == (0, 32)


def test_the_default_tile_is_one_that_tuning_tries() -> None:
    shape = _shape(torch.empty(1, 64, device="meta"))
    for capability in (80, 86, 90, 100):
        assert TILES.default(capability, shape) in TILES.candidates(capability, shape)


def test_what_has_no_gate_is_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="2 \\* inner"):
        silu_mul(torch.ones(2, 7, device=device))
    with pytest.raises(ValueError, match="float64"):
        silu_mul(torch.ones(2, 8, device=device, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"out is .* \[2, 8\]"):
        silu_mul(torch.ones(2, 8, device=device), out=torch.ones(2, 8, device=device))
