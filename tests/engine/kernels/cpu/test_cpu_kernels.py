"""CPU kernels against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from engine.kernels.cpu.attention import attention, attention_reference, merge
from engine.kernels.cpu.linear import Linear, can_pack, padded_tokens
from engine.kernels.cpu.norm import rms_norm
from engine.kernels.cpu.rope import rotate

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 5e-2}


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64).to(dtype)


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= TOLERANCE[dtype] * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 16, 17, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_and_what_follows_it(dtype: torch.dtype, packed: bool, rows: int, bias: bool) -> None:
    if packed and not can_pack(dtype):
        pytest.skip(f"this build of torch can't lay out {dtype} weights")
    w, x = random(40, 24, dtype=dtype), random(rows, 24, dtype=dtype)
    b = random(40, dtype=dtype) if bias else None
    other = random(rows, 40, dtype=dtype, seed=1)
    expected = F.linear(x.double(), w.double(), None if b is None else b.double())
    linear = Linear(w, b, packed=packed)
    close(linear(x), expected, dtype)
    close(linear.silu(x), F.silu(expected), dtype)
    close(linear.times(x, other), expected * other.double(), dtype)
    close(linear.plus(x, other), expected + other.double(), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("outputs", "inputs"), [(40, 32), (40, 33), (7, 96), (1, 1)])
@pytest.mark.parametrize("rows", [0, 1, 3, 16, 17, 130])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_of_int8_is_the_product_with_the_dequantised_weight(
    dtype: torch.dtype, outputs: int, inputs: int, rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.kernels.cpu.linear.WIDENED", 9 * inputs)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(outputs + inputs)
    stored = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8, generator=generator)
    scale = 0.02 * torch.rand(outputs, generator=generator) + 1e-3
    x, other = random(rows, inputs, dtype=dtype), random(rows, outputs, dtype=dtype, seed=1)
    b = random(outputs, dtype=dtype) if bias else None
    expected = F.linear(x.double(), stored.double() * scale.double()[:, None], None if b is None else b.double())
    linear = Linear(stored, b, scale)
    if rows == 0:
        assert linear(x).shape == linear.silu(x).shape == (0, outputs)
        return
    close(linear(x), expected, dtype)
    close(linear.silu(x), F.silu(expected), dtype)
    close(linear.times(x, other), expected * other.double(), dtype)
    close(linear.plus(x, other), expected + other.double(), dtype)


def test_few_tokens_and_many_have_the_same_scales_in_bfloat16() -> None:
    """A scale rounded to bfloat16 would shift a whole channel by up to 0.4 %."""
    stored = torch.full((64, 64), 127, dtype=torch.int8)
    scale = torch.full((64,), (1 + 2**-9 + 2**-12) / 127)
    x = torch.full((1, 64), 1 / 64, dtype=torch.bfloat16)
    exact = (127 * scale[:1]).bfloat16()
    for rows in (1, 16, 17):
        assert torch.equal(Linear(stored, None, scale)(x.repeat(rows, 1)), exact.expand(rows, 64))


def test_int8_without_its_scale_is_refused_and_so_is_the_reverse() -> None:
    ones = torch.ones(4)
    with pytest.raises(ValueError, match=r"int8 without a scale"):
        Linear(torch.ones(4, 4, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"float32 with a scale"):
        Linear(torch.ones(4, 4), None, ones)
    with pytest.raises(ValueError, match=r"float8_e4m3fn with a scale"):
        Linear(torch.ones(4, 4).to(torch.float8_e4m3fn), None, ones)
    with pytest.raises(ValueError, match=r"int16 without a scale"):
        Linear(torch.ones(4, 4, dtype=torch.int16))


def test_packed_calls_come_in_few_sizes_and_waste_little() -> None:
    sizes = {n: padded_tokens(n) for n in range(1, 2049)}
    assert all(n <= size <= n + max(16, n // 8) for n, size in sizes.items())
    assert all(padded_tokens(size) == size for size in sizes.values())
    assert len(set(sizes.values())) < 50


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rms_norm(dtype: torch.dtype) -> None:
    x, w = random(5, 3, 32, dtype=dtype) * 7, random(32, dtype=dtype)
    wide = x.double()
    close(rms_norm(x, w, 1e-5), wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w.double(), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rotation_is_multiplication_by_a_unit_complex_number(dtype: torch.dtype) -> None:
    x = random(6, 2, 16, dtype=dtype)
    angle = random(6, 1, 8, dtype=torch.float64)
    pairs = torch.complex(x[..., :8].double(), x[..., 8:].double()) * torch.exp(1j * angle)
    expected = torch.cat([pairs.real, pairs.imag], -1)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
    close(rotate(x, cos, sin), expected, dtype)
    out = torch.empty(2, 6, 16, dtype=dtype)
    assert rotate(x.transpose(0, 1).transpose(0, 1), cos, sin, out=out.transpose(0, 1)).shape == x.shape
    close(out.transpose(0, 1), expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["plain", "causal", "mask", "shared heads"])
def test_attention_is_its_formula(dtype: torch.dtype, kind: str) -> None:
    q, k, v = (random(2, 3, 37, 16, dtype=dtype, seed=seed) for seed in range(3))
    mask = None
    if kind == "mask":
        mask = torch.zeros(2, 1, 37, 37, dtype=dtype).masked_fill_(random(2, 1, 37, 37) > 1, float("-inf"))
    if kind == "shared heads":
        k, v = (x[:, :1].expand(-1, 3, -1, -1) for x in (k, v))
    out, lse = attention(q, k, v, causal=kind == "causal", mask=mask)
    true, true_lse = attention_reference(
        q.double(), k.double(), v.double(), causal=kind == "causal", mask=None if mask is None else mask.double()
    )
    close(out, true, dtype)
    close(lse, true_lse, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_merged_parts_are_the_whole(dtype: torch.dtype) -> None:
    q, k, v = (random(2, 3, n, 16, dtype=dtype, seed=seed) for seed, n in enumerate((9, 40, 40)))
    whole, whole_lse = attention_reference(q.double(), k.double(), v.double())
    out, lse = attention(q, k[:, :, :13], v[:, :, :13])
    for part in (slice(13, 14), slice(14, 40)):
        merge(out, lse, *attention(q, k[:, :, part], v[:, :, part]))
    close(out, whole, dtype)
    close(lse, whole_lse, dtype)
