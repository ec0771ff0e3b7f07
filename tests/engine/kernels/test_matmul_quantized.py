"""The product with 8-bit weights against float64, and that with `invariant` nothing but a row itself decides its bits.

On a GPU the chains of matrix instructions are what is compared; the interpreter shows that masks, offsets and the order
of programs let nothing of other rows in.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from engine.kernels.matmul_quantized import (
    TILES,
    _shape,
    matmul_quantized,
    matmul_quantized_reference,
    work,
)
from engine.kernels.matmul_quantized_tiles import programs
from engine.kernels.tiles import Gpu, current_gpu
from engine.models.quantise import dequantised, quantise

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
CHIPS = [Gpu("", 80, 108), Gpu("", 86, 80), Gpu("", 90, 132), Gpu("", 100, 148)]
KINDS = ["int8", "fp8"]


class Inputs(NamedTuple):
    x: Tensor
    stored: Tensor
    scale: Tensor
    bias: Tensor


def inputs(
    m: int, n: int, k: int, dtype: torch.dtype, device: torch.device, kind: str = "int8", seed: int = 0
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (n,)))
    stored, scale = quantise(weight * torch.rand(n, 1, generator=generator), kind)
    return Inputs(x.to(device, dtype), stored.to(device), scale.to(device), bias.to(device, dtype))


@pytest.fixture(autouse=True)
def _chip_has_float8(request: pytest.FixtureRequest, device: torch.device) -> None:
    named = getattr(request.node, "callspec", None)
    if named and named.params.get("kind") == "fp8" and device.type == "cuda" and current_gpu().capability < 89:
        pytest.skip("this GPU has no float8")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 64, 128), (3, 100, 77), (65, 33, 130), (130, 48, 1), (64, 1, 256), (17, 200, 96)]
)
def test_matches_float64(dtype: torch.dtype, kind: str, m: int, n: int, k: int, device: torch.device) -> None:
    x, stored, scale, bias = inputs(m, n, k, dtype, device, kind, seed=k)
    for b in (None, bias):
        out = torch.full((m, n), torch.nan, device=device, dtype=dtype)
        assert matmul_quantized(x, stored, scale, b, out=out) is out
        reference = matmul_quantized_reference(x.double(), stored, scale, None if b is None else b.double())
        assert (out.double() - reference).norm() / reference.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_product_with_the_dequantised_weight(kind: str) -> None:
    x, weight = torch.randn(5, 30).double(), torch.randn(7, 30)
    made = quantise(weight, kind)
    expected = x @ dequantised(made, torch.float64).T
    assert torch.allclose(matmul_quantized_reference(x, *made), expected, rtol=1e-12, atol=1e-12)


def test_float32_is_exact_where_the_result_is(device: torch.device) -> None:
    """Small whole numbers: one rounding anywhere, as to tf32, would show."""
    x = torch.arange(-40, 40, dtype=torch.float32).view(2, 40) + 2**-10
    stored = torch.arange(-60, 60, dtype=torch.int8).view(3, 40)
    scale = torch.tensor([0.5, 2.0, 0.25])
    y = matmul_quantized(x.to(device), stored.to(device), scale.to(device))
    assert torch.equal(y.cpu().double(), matmul_quantized_reference(x.double(), stored, scale))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_has_the_same_bits_for_any_number_of_rows(dtype: torch.dtype, device: torch.device) -> None:
    x, *weight = inputs(150, 40, 200, dtype, device)
    together = matmul_quantized(x, *weight, invariant=True)
    for m in (1, 7, 16, 17, 64, 65, 129):
        assert torch.equal(matmul_quantized(x[:m], *weight, invariant=True), together[:m]), f"{m} rows"
        assert torch.equal(matmul_quantized(x[-m:], *weight, invariant=True), together[-m:]), f"the last {m} rows"


def test_a_row_has_the_same_bits_wherever_it_stands_and_whatever_the_others_are(device: torch.device) -> None:
    x, *weight = inputs(70, 40, 160, torch.float32, device)
    alone = matmul_quantized(x[:1], *weight, invariant=True)
    for place in (0, 1, 15, 16, 63, 64, 69):
        others = 1e3 * torch.randn(70, 160, generator=torch.Generator().manual_seed(place)).to(device)
        others[place] = x[0]
        assert torch.equal(matmul_quantized(others, *weight, invariant=True)[place], alone[0])


def test_rows_that_arent_finite_stay_alone(device: torch.device) -> None:
    x, *weight = inputs(20, 40, 64, torch.float32, device)
    expected = matmul_quantized(x, *weight)
    x[3], x[11] = torch.nan, torch.nan
    y = matmul_quantized(x, *weight)
    kept = [i for i in range(20) if i not in (3, 11)]
    assert torch.equal(y[kept], expected[kept])
    assert y[3].isnan().all()


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_tile_gives_the_result_and_with_invariant_the_same_bits(
    dtype: torch.dtype, invariant: bool, device: torch.device
) -> None:
    x, *weight = inputs(70, 72, 136, dtype, device)
    expected = matmul_quantized(x, *weight, invariant=invariant)
    chips = [current_gpu()] if device.type == "cuda" else CHIPS
    shape = _shape(70, 72, 136, dtype, torch.int8, invariant)
    tiles = [tile for chip in chips for tile in TILES.candidates(chip.capability, shape)]
    for i, tile in enumerate(tiles):
        if tile not in tiles[:i]:
            y = matmul_quantized(x, *weight, invariant=invariant, tile=tile)
            if invariant:
                assert torch.equal(y, expected), tile
            else:
                assert (y.double() - expected.double()).norm() < TOLERANCE[dtype] * expected.double().norm(), tile


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(12288, 4096), (4096, 11008), (896, 4864)])
def test_the_projections_of_a_model_have_the_same_bits_for_any_number_of_rows(
    dtype: torch.dtype, kind: str, n: int, k: int, device: torch.device
) -> None:
    x, *weight = inputs(4096, n, k, dtype, device, kind)
    together = matmul_quantized(x, *weight, invariant=True)
    for m in (1, 2, 8, 31, 64, 65, 128, 200, 256, 511, 1024, 2048):
        assert torch.equal(matmul_quantized(x[:m], *weight, invariant=True), together[:m]), f"{m} rows"
    for tile in TILES.candidates(current_gpu().capability, _shape(300, n, k, dtype, weight[0].dtype, True)):
        assert torch.equal(matmul_quantized(x[:300], *weight, invariant=True, tile=tile), together[:300]), tile


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: f"sm_{chip.capability}")
def test_defaults_are_among_what_tuning_tries_and_fit_the_number_of_rows(chip: Gpu, invariant: bool) -> None:
    for n, k in ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (896, 4864)):
        for dtype in (torch.bfloat16, torch.float32):
            shapes = [_shape(m, n, k, dtype, torch.int8, invariant) for m in (1, 16, 17, 64, 100, 512, 8192)]
            chosen = [TILES.default(chip.capability, shape) for shape in shapes]
            for tile, shape in zip(chosen, shapes):
                assert tile in TILES.candidates(chip.capability, shape)
            assert chosen[0].constants["BLOCK_M"] == 16, "few rows, a small tile"
            if dtype == torch.bfloat16 and n >= 4096:
                assert chosen[-1].constants["BLOCK_M"] >= 128, "many rows, a large one"
                if not invariant:
                    assert all(programs(t, s) >= 0.55 * chip.processors for t, s in zip(chosen[:5], shapes))


def test_all_tiles_of_the_invariant_product_use_one_kind_of_matrix_instruction() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        shape = _shape(1, 4096, 4096, dtype, torch.int8, True)
        for capability in (90, 100):  # a tile of fewer outputs or warps would be multiplied by mma.sync
            for tile in TILES.candidates(capability, shape):
                assert tile.constants["BLOCK_N"] >= 64
                assert tile.num_warps in (4, 8)


def test_a_weight_moves_in_half_the_bytes() -> None:
    whole = work(1, 4096, 4096)
    assert whole.bytes == 4096 * 4096 + 4 * 4096 + 2 * 2 * 4096
    assert whole.operations == 2 * 4096 * 4096


def test_operands_may_be_parts_of_wider_ones(device: torch.device) -> None:
    x, stored, scale, bias = inputs(5, 20, 64, torch.float32, device)
    out = torch.full((5, 30), torch.nan, device=device)
    matmul_quantized(x[:, 8:48], stored[:, 8:48], scale, bias, out=out[:, 4:24])
    expected = matmul_quantized(x[:, 8:48].contiguous(), stored[:, 8:48].contiguous(), scale, bias)
    assert torch.equal(out[:, 4:24], expected)
    assert out[:, :4].isnan().all()
    assert out[:, 24:].isnan().all()


def test_no_rows_are_no_work(device: torch.device) -> None:
    _, stored, scale, _ = inputs(1, 20, 64, torch.float32, device)
    assert matmul_quantized(torch.empty(0, 64, device=device), stored, scale).shape == (0, 20)


def test_operands_that_dont_fit_are_refused(device: torch.device) -> None:
    x, stored, scale, bias = inputs(2, 6, 8, torch.float32, device)
    with pytest.raises(ValueError, match=r"\[m, k\] and \[n, k\]"):
        matmul_quantized(x[:, :7], stored, scale)
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        matmul_quantized(x.double(), stored, scale)
    with pytest.raises(ValueError, match=r"weight is torch\.float16; it must be int8 or float8_e4m3fn"):
        matmul_quantized(x, stored.half(), scale)
    with pytest.raises(ValueError, match=r"scale is torch\.float16 \[6\]; it must be float32"):
        matmul_quantized(x, stored, scale.half())
    with pytest.raises(ValueError, match=r"scale is torch\.float32 \[5\]"):
        matmul_quantized(x, stored, scale[:5])
    with pytest.raises(ValueError, match=r"bias is torch\.float32 \[5\]"):
        matmul_quantized(x, stored, scale, bias[:5])
    with pytest.raises(ValueError, match=r"out is .* must be torch\.float32 \[2, 6\]"):
        matmul_quantized(x, stored, scale, bias, out=torch.empty(2, 5, device=device))
    with pytest.raises(ValueError, match="weight has strides"):
        matmul_quantized(x, torch.ones(8, 6, dtype=torch.int8, device=device).T, scale)
