"""The norm kernel against float64, and what its bits may depend on."""

from __future__ import annotations

import pytest
import torch

from engine.kernels.cpu.norm import rms_norm as rms_norm_cpu
from engine.kernels.rms_norm import LARGEST, TILES, _shape, rms_norm, rms_norm_reference

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
EPS = 1e-5


def error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return float((y.double() - reference).norm() / reference.norm())


def poisoned(x: torch.Tensor) -> torch.Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("tokens", "size"), [(1, 1), (3, 40), (2, 768), (1, 4096), (2, 5120), (1, 11008), (1, LARGEST)]
)
def test_matches_float64_for_rows_of_any_size(dtype: torch.dtype, tokens: int, size: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(size)
    x, residual = (torch.randn(tokens, size, generator=generator).to(device, dtype) for _ in range(2))
    weight = torch.randn(size, generator=generator).to(device, dtype)
    y = rms_norm(x, weight, EPS, out=poisoned(x))
    assert error(y, rms_norm_reference(x.double(), weight.double(), EPS)) < TOLERANCE[dtype]

    summed = x + residual  # rounded to the model's type, like the CPU's
    reference = rms_norm_reference(x.double(), weight.double(), EPS, residual=residual.double())
    y = rms_norm(x, weight, EPS, residual=residual, out=poisoned(x))
    if dtype == torch.bfloat16 and device.type == "cpu":  # the interpreter cuts bfloat16 off where GPUs round
        torch.testing.assert_close(residual, summed, rtol=2**-7, atol=0)
    else:
        assert torch.equal(residual, summed)
    assert error(y, reference) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_where_the_cpu_rounds(dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter cuts bfloat16 off where GPUs round")
    x = torch.randn(4, 640, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    weight = torch.randn(640, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    y = rms_norm(x, weight, EPS)
    expected = rms_norm_cpu(x.cpu(), weight.cpu(), EPS).to(device)
    # The sums of squares differ in their last bits, which may flip a rounding here and there.
    assert (y != expected).float().mean() < 0.01
    torch.testing.assert_close(y, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_a_row_has_the_same_bits_wherever_it_stands(device: torch.device) -> None:
    x = torch.randn(5, 1000, generator=torch.Generator().manual_seed(3)).to(device, torch.bfloat16)
    weight = torch.ones(1000, device=device, dtype=torch.bfloat16)
    together = rms_norm(x, weight, EPS)
    for i in range(len(x)):
        assert torch.equal(rms_norm(x[i : i + 1], weight, EPS)[0], together[i])
    assert torch.equal(rms_norm(x.flip(0), weight, EPS), together.flip(0))


def test_rows_may_be_parts_of_wider_ones_and_the_result_may_replace_them(device: torch.device) -> None:
    wide = torch.randn(3, 200, generator=torch.Generator().manual_seed(4)).to(device)
    weight = torch.randn(72, generator=torch.Generator().manual_seed(5)).to(device)
    x, others = wide[:, 8:80], wide[:, 80:].clone()
    expected = rms_norm(x.contiguous(), weight, EPS)
    assert rms_norm(x, weight, EPS, out=x) is x
    assert torch.equal(x, expected)
    assert torch.equal(wide[:, 80:], others)


def test_a_row_of_zeros_stays_zero_and_no_rows_are_no_work(device: torch.device) -> None:
    weight = torch.ones(96, device=device)
    assert torch.equal(rms_norm(torch.zeros(2, 96, device=device), weight, EPS), torch.zeros(2, 96, device=device))
    assert rms_norm(torch.empty(0, 96, device=device), weight, EPS).shape == (0, 96)


@pytest.mark.parametrize("size", [96, 4096, LARGEST])
def test_the_default_tile_is_one_that_tuning_tries(size: int) -> None:
    shape = _shape(torch.empty(1, size, device="meta"))
    for capability in (80, 86, 90, 100):
        assert TILES.default(capability, shape) in TILES.candidates(capability, shape)


def test_what_cant_be_normed_is_refused(device: torch.device) -> None:
    x, weight = torch.ones(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(ValueError, match="at most 16384"):
        rms_norm(torch.ones(1, LARGEST + 1, device=device), torch.ones(LARGEST + 1, device=device), EPS)
    with pytest.raises(ValueError, match="float64"):
        rms_norm(x.double(), weight.double(), EPS)
    with pytest.raises(ValueError, match=r"weight is \[7\]"):
        rms_norm(x, weight[:7], EPS)
    with pytest.raises(ValueError, match=r"residual is torch\.float16"):
        rms_norm(x, weight, EPS, residual=x.half())
    with pytest.raises(ValueError, match="contiguous"):
        rms_norm(torch.ones(8, 2, device=device).T, weight, EPS)
