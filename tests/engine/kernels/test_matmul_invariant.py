"""The batch-invariant product against float64, and that nothing but a row itself decides its bits.

On a GPU the chains of matrix instructions are what is compared; the interpreter shows that masks, offsets and the order
of programs let nothing of other rows in.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from engine.kernels.matmul_invariant import TILES, _shape, matmul_invariant, matmul_invariant_reference
from engine.kernels.matmul_invariant_tiles import BULK, programs
from engine.kernels.tiles import Gpu, current_gpu

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
CHIPS = [Gpu("", 80, 108), Gpu("", 86, 80), Gpu("", 90, 132), Gpu("", 100, 148)]


def inputs(m: int, n: int, k: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((m, k), (n, k), (n,)))
    return x.to(device, dtype), weight.to(device, dtype), bias.to(device, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 64, 128), (3, 100, 77), (65, 33, 130), (130, 48, 1), (64, 1, 256), (17, 200, 96)]
)
def test_matches_float64(dtype: torch.dtype, m: int, n: int, k: int, device: torch.device) -> None:
    x, weight, bias = inputs(m, n, k, dtype, device, seed=k)
    for b in (None, bias):
        out = torch.full((m, n), torch.nan, device=device, dtype=dtype)
        assert matmul_invariant(x, weight, b, out=out) is out
        reference = matmul_invariant_reference(x.double(), weight.double(), None if b is None else b.double())
        assert (out.double() - reference).norm() / reference.norm() < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_row_has_the_same_bits_for_any_number_of_rows(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = inputs(150, 40, 200, dtype, device)
    together = matmul_invariant(x, weight, bias)
    for m in (1, 7, 16, 17, 64, 65, 129):
        assert torch.equal(matmul_invariant(x[:m], weight, bias), together[:m]), f"{m} rows"
        assert torch.equal(matmul_invariant(x[-m:], weight, bias), together[-m:]), f"the last {m} rows"


def test_a_row_has_the_same_bits_wherever_it_stands_and_whatever_the_others_are(device: torch.device) -> None:
    x, weight, bias = inputs(70, 40, 160, torch.float32, device)
    alone = matmul_invariant(x[:1], weight, bias)
    for place in (0, 1, 15, 16, 63, 64, 69):
        others = 1e3 * torch.randn(70, 160, generator=torch.Generator().manual_seed(place)).to(device)
        others[place] = x[0]
        assert torch.equal(matmul_invariant(others, weight, bias)[place], alone[0])


def test_rows_that_arent_finite_stay_alone(device: torch.device) -> None:
    x, weight, bias = inputs(20, 40, 64, torch.float32, device)
    expected = matmul_invariant(x, weight, bias)
    x[3], x[11] = torch.nan, torch.nan
    y = matmul_invariant(x, weight, bias)
    kept = [i for i in range(20) if i not in (3, 11)]
    assert torch.equal(y[kept], expected[kept])
    assert y[3].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_every_tile_of_a_chip_gives_the_same_bits(dtype: torch.dtype, device: torch.device) -> None:
    x, weight, bias = inputs(70, 72, 136, dtype, device)
    expected = matmul_invariant(x, weight, bias)
    chips = [current_gpu()] if device.type == "cuda" else CHIPS
    shape = _shape(70, 72, 136, dtype)
    tiles = [tile for chip in chips for tile in TILES.candidates(chip.capability, shape)]
    for i, tile in enumerate(tiles):
        if tile not in tiles[:i]:
            assert torch.equal(matmul_invariant(x, weight, bias, tile=tile), expected), tile


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("n", "k"), [(12288, 4096), (4096, 11008), (896, 4864)])
def test_the_projections_of_a_model_have_the_same_bits_for_any_number_of_rows(
    dtype: torch.dtype, n: int, k: int, device: torch.device
) -> None:
    x, weight, _ = inputs(4096, n, k, dtype, device)
    together = matmul_invariant(x, weight)
    for m in (1, 2, 8, 31, 64, 65, 128, 200, 256, 511, 1024, 2048):
        assert torch.equal(matmul_invariant(x[:m], weight), together[:m]), f"{m} rows"
        assert torch.equal(matmul_invariant(x[1000 : 1000 + m], weight), together[1000 : 1000 + m]), f"{m} rows"
    for tile in TILES.candidates(current_gpu().capability, _shape(300, n, k, dtype)):
        assert torch.equal(matmul_invariant(x[:300], weight, tile=tile), together[:300]), tile


@pytest.mark.parametrize("chip", CHIPS, ids=lambda chip: f"sm_{chip.capability}")
def test_defaults_are_among_what_tuning_tries_and_fit_the_number_of_rows(chip: Gpu) -> None:
    for n, k in ((12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (896, 4864)):
        for dtype in (torch.bfloat16, torch.float32):
            shapes = [_shape(m, n, k, dtype) for m in (1, 16, 17, 64, 100, 512, 8192)]
            chosen = [TILES.default(chip.capability, shape) for shape in shapes]
            for tile, shape in zip(chosen, shapes):
                assert tile in TILES.candidates(chip.capability, shape)
            sizes = [tile.constants["BLOCK_M"] for tile in chosen]
            assert sizes == sorted(sizes), "more rows, larger tiles"
            if n >= 4096:
                assert all(programs(tile, shape) >= 0.55 * chip.processors for tile, shape in zip(chosen, shapes))


def test_all_tiles_of_a_chip_use_one_kind_of_matrix_instruction() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        shape = _shape(1, 4096, 4096, dtype)
        for capability in (90, 100):  # a tile of fewer rows or warps would be multiplied by mma.sync
            for tile in TILES.candidates(capability, shape):
                assert tile.constants["BLOCK_M"] >= 64
                assert tile.num_warps in (4, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_what_the_bulk_copy_engine_cant_address_has_the_same_bits(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cuda" and current_gpu().capability < 90:
        pytest.skip("this GPU has no bulk copy engine")
    x, weight, bias = inputs(130, 72, 129, dtype, device)
    aligned = [torch.zeros(len(matrix), 136, device=device, dtype=dtype) for matrix in (x, weight)]
    for matrix, source in zip(aligned, (x, weight)):
        matrix[:, :128] = source[:, 1:]
    expected = matmul_invariant(aligned[0][:, :128], aligned[1][:, :128], bias, tile=BULK[0])
    assert torch.equal(matmul_invariant(x[:, 1:], weight[:, 1:], bias, tile=BULK[0]), expected)


def test_operands_may_be_parts_of_wider_ones(device: torch.device) -> None:
    x, weight, bias = inputs(5, 20, 64, torch.float32, device)
    out = torch.full((5, 30), torch.nan, device=device)
    matmul_invariant(x[:, 8:48], weight[:, 8:48], bias, out=out[:, 4:24])
    assert torch.equal(out[:, 4:24], matmul_invariant(x[:, 8:48].contiguous(), weight[:, 8:48].contiguous(), bias))
    assert out[:, :4].isnan().all()
    assert out[:, 24:].isnan().all()


def test_no_rows_are_no_work(device: torch.device) -> None:
    _, weight, bias = inputs(1, 20, 64, torch.float32, device)
    assert matmul_invariant(torch.empty(0, 64, device=device), weight, bias).shape == (0, 20)


def test_operands_that_dont_fit_are_refused(device: torch.device) -> None:
    x, weight, bias = inputs(2, 6, 8, torch.float32, device)
    with pytest.raises(ValueError, match=r"\[m, k\] and \[n, k\]"):
        matmul_invariant(x[:, :7], weight)
    with pytest.raises(ValueError, match=r"weight torch\.float16"):
        matmul_invariant(x, weight.half())
    with pytest.raises(ValueError, match=r"bias is torch\.float32 \[5\]"):
        matmul_invariant(x, weight, bias[:5])
    with pytest.raises(ValueError, match=r"out is .* must be torch\.float32 \[2, 6\]"):
        matmul_invariant(x, weight, bias, out=torch.empty(2, 5, device=device))
    with pytest.raises(ValueError, match="weight has strides"):
        matmul_invariant(x, torch.ones(8, 6, device=device).T)
