"""Rotary embedding and the store of K and V against float64, and the quantised pools bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from engine.kernels.cpu.rope import rotate
from engine.kernels.paged import PagedKV
from engine.kernels.rope_and_store import TILES, _shape, rope_and_store, rope_and_store_reference, rotary_tables
from engine.kernels.tiles import Gpu, Tile, target
from engine.models.config import ModelConfig, RopeConfig
from engine.models.rotary import Rotary

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SLOTS = 24
POSITIONS = 40


class Inputs(NamedTuple):
    qkv: Tensor
    positions: Tensor
    slots: Tensor
    cos: Tensor
    sin: Tensor
    norm: Tensor


def inputs(
    tokens: int, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, generator=generator)
    positions = torch.randint(0, POSITIONS, (tokens,), generator=generator)
    slots = torch.randperm(SLOTS, generator=generator)[:tokens]
    angles = 7 * torch.rand(POSITIONS, head_dim // 2, generator=generator)
    norm = torch.randn(head_dim, generator=generator)
    return Inputs(
        qkv.to(device, dtype),
        positions.to(device),
        slots.to(device),
        angles.cos().to(device),
        angles.sin().to(device),
        norm.to(device, dtype),
    )


def empty_pool(kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> PagedKV:
    """Poisoned where nothing has been stored."""
    k, v = (torch.full((kv_heads, SLOTS, head_dim), torch.nan, device=device) for _ in range(2))
    if dtype in (torch.int8, torch.float8_e4m3fn):
        scales = [torch.full((kv_heads, SLOTS), torch.nan, device=device) for _ in range(2)]
        return PagedKV(k.nan_to_num(77).to(dtype), v.nan_to_num(77).to(dtype), 4, *scales)
    return PagedKV(k.to(dtype), v.to(dtype), 4)


def error(y: Tensor, reference: Tensor) -> float:
    return float((y.double() - reference).norm() / reference.norm())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(
    ("tokens", "heads", "kv_heads", "head_dim"),
    [(1, 32, 8, 64), (3, 28, 4, 80), (5, 1, 1, 34), (2, 3, 3, 128), (1, 5, 5, 256), (7, 20, 20, 32), (2, 8, 1, 96)],
)
def test_matches_float64(
    dtype: torch.dtype, tokens: int, heads: int, kv_heads: int, head_dim: int, device: torch.device
) -> None:
    for with_norm in (False, True):
        x = inputs(tokens, heads, kv_heads, head_dim, dtype, device, seed=head_dim)
        norm = x.norm if with_norm else None
        kv = empty_pool(kv_heads, head_dim, dtype, device)
        q = torch.full((tokens, heads, head_dim), torch.nan, device=device, dtype=dtype)
        assert rope_and_store(*x[:5], kv, q, q_norm=norm, k_norm=norm, eps=1e-5) is q

        exact = empty_pool(kv_heads, head_dim, torch.float64, device)
        q64 = torch.empty_like(q, dtype=torch.float64)
        norm64 = norm if norm is None else norm.double()
        rope_and_store_reference(x.qkv.double(), *x[1:5], exact, q64, q_norm=norm64, k_norm=norm64, eps=1e-5)
        assert error(q, q64) < TOLERANCE[dtype]
        assert error(kv.k[:, x.slots], exact.k[:, x.slots]) < TOLERANCE[dtype]
        assert torch.equal(kv.v[:, x.slots].double(), exact.v[:, x.slots]), "v is stored as it is"
        untouched = torch.ones(SLOTS, dtype=torch.bool, device=device)
        untouched[x.slots] = False
        assert kv.k[:, untouched].isnan().all()
        assert kv.v[:, untouched].isnan().all()


def test_turns_like_the_cpu_path(device: torch.device) -> None:
    x = inputs(4, 6, 2, 40, torch.float32, device)
    kv, q = empty_pool(2, 40, torch.float32, device), torch.empty(4, 6, 40, device=device)
    rope_and_store(*x[:5], kv, q)
    heads = x.qkv.view(4, 10, 40)
    cos, sin = x.cos[x.positions][:, None], x.sin[x.positions][:, None]
    torch.testing.assert_close(q, rotate(heads[:, :6], cos, sin), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kv.k[:, x.slots].transpose(0, 1), rotate(heads[:, 6:8], cos, sin), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("heads", [4, 8, 32])
def test_the_tile_doesnt_change_the_result(heads: int, device: torch.device) -> None:
    x = inputs(3, 12, 3, 48, torch.float32, device)
    results = []
    for tile in (None, Tile({"HEADS": heads}, 2, 1)):
        kv, q = empty_pool(3, 48, torch.int8, device), torch.empty(3, 12, 48, device=device)
        rope_and_store(*x[:5], kv, q, q_norm=x.norm, k_norm=x.norm, eps=1e-5, tile=tile)
        results.append((q, kv.k, kv.v, kv.k_scale.nan_to_num(-1), kv.v_scale.nan_to_num(-1)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


@pytest.mark.parametrize("pool", [torch.float32, torch.int8, torch.float8_e4m3fn], ids=str)
def test_padding_stores_nothing_but_its_queries_are_turned(pool: torch.dtype, device: torch.device) -> None:
    x = inputs(4, 2, 2, 32, torch.float32, device)
    kv, q = empty_pool(2, 32, pool, device), torch.full((4, 2, 32), torch.nan, device=device)
    before = [t.float().nan_to_num(-1) for t in (kv.k, kv.v, kv.k_scale, kv.v_scale) if t is not None]
    rope_and_store(x.qkv, x.positions, torch.full_like(x.slots, -1), x.cos, x.sin, kv, q)
    after = [t.float().nan_to_num(-1) for t in (kv.k, kv.v, kv.k_scale, kv.v_scale) if t is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert torch.equal(q, rope_and_store(*x[:5], kv, torch.empty_like(q)))


@pytest.mark.parametrize("pool", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_quantised_as_the_reference_bit_for_bit(pool: torch.dtype, dtype: torch.dtype, device: torch.device) -> None:
    x = inputs(6, 4, 3, 80, dtype, device)
    x.qkv.mul_(torch.logspace(-6, 2, x.qkv.shape[1], device=device).to(dtype))  # from far under a step to the largest
    ours, theirs = (empty_pool(3, 80, pool, device) for _ in range(2))
    q = torch.empty(6, 4, 80, device=device, dtype=dtype)
    rope_and_store(*x[:5], ours, q)
    rope_and_store_reference(*x[:5], theirs, torch.empty_like(q))
    assert torch.equal(ours.v[:, x.slots].view(torch.int8), theirs.v[:, x.slots].view(torch.int8))
    assert torch.equal(ours.v_scale[:, x.slots], theirs.v_scale[:, x.slots])
    # k was turned in float32, by a product and a fused one: an ulp may tip a number over to the next step.
    assert (ours.k[:, x.slots].float() != theirs.k[:, x.slots].float()).float().mean() < 0.005
    torch.testing.assert_close(ours.k_scale[:, x.slots], theirs.k_scale[:, x.slots], rtol=1e-6, atol=0)


@pytest.mark.parametrize("pool", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_every_number_of_a_quantised_pool_and_every_tie_between_two(pool: torch.dtype, device: torch.device) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(pool).float()
    grid = codes[codes.isfinite() & (codes >= 0) & (codes < 449)].unique()
    if pool == torch.int8:
        grid = torch.arange(128.0)
    ties = (grid[1:] + grid[:-1]) / 2
    values = torch.cat([grid, ties, -grid, -ties])
    head_dim, largest = 64, grid.max()
    vectors = values.split(head_dim - 1)
    v = torch.stack([torch.cat([part, part.new_zeros(head_dim - 1 - len(part)), largest[None]]) for part in vectors])
    qkv = torch.cat([torch.zeros(len(v), 2 * head_dim), v], dim=1).to(device)
    kv = empty_pool(1, head_dim, pool, device)
    at = torch.arange(len(v), device=device)
    tables = torch.ones(len(v), head_dim // 2, device=device)
    rope_and_store(qkv, at, at, tables, tables, kv, torch.empty(len(v), 1, head_dim, device=device))
    assert torch.equal(kv.v_scale[0, at], torch.ones(len(v), device=device))
    expected = v.round().to(pool) if pool == torch.int8 else v.to(pool)
    assert torch.equal(kv.v[0, at].float().cpu(), expected.float())


@pytest.mark.parametrize("pool", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_vector_of_zeros_is_stored_as_zeros(pool: torch.dtype, device: torch.device) -> None:
    x = inputs(2, 1, 1, 32, torch.float32, device)
    kv = empty_pool(1, 32, pool, device)
    rope_and_store(torch.zeros_like(x.qkv), *x[1:5], kv, torch.empty(2, 1, 32, device=device))
    for stored, scale in ((kv.k, kv.k_scale), (kv.v, kv.v_scale)):
        assert torch.equal(stored[:, x.slots].float() * scale[:, x.slots, None], torch.zeros(1, 2, 32, device=device))


@pytest.mark.parametrize(
    "rope",
    [
        RopeConfig(),
        RopeConfig(kind="linear", factor=4.0),
        RopeConfig(kind="dynamic", factor=2.0),
        RopeConfig(kind="yarn", factor=4.0, original_max_position=1024),
        RopeConfig(
            kind="longrope",
            factor=4.0,
            original_max_position=1024,
            short_factor=(1.0,) * 16,
            long_factor=tuple(1.0 + i for i in range(16)),
        ),
        RopeConfig(kind="llama3", factor=8.0, original_max_position=1024),
    ],
    ids=lambda rope: rope.kind,
)
def test_tables_hold_what_the_cpu_path_computes_for_every_scaling(rope: RopeConfig, device: torch.device) -> None:
    config = ModelConfig(
        family="llama",
        vocab_size=8,
        hidden_size=32,
        intermediate_size=8,
        n_layers=1,
        n_heads=1,
        n_kv_heads=1,
        head_dim=32,
        max_context=4096,
        rope=rope,
    )
    rotary = Rotary(config, torch.float32)
    cos, sin = rotary_tables(rotary, 4096, device)
    positions = torch.tensor([0, 1, 77, 1024, 4095])
    expected_cos, expected_sin = rotary(positions)
    torch.testing.assert_close(cos.cpu()[positions], expected_cos[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(sin.cpu()[positions], expected_sin[:, 0], rtol=1e-6, atol=1e-6)


def test_slots_and_strides_of_a_pool_that_is_part_of_a_larger_one(device: torch.device) -> None:
    x = inputs(3, 2, 2, 32, torch.float32, device)
    pool = torch.full((2, 3, 2, SLOTS, 32), torch.nan, device=device)  # K and V, layers, heads, slots
    kv = PagedKV(pool[0, 1], pool[1, 1], 4)
    rope_and_store(*x[:5], kv, torch.empty(3, 2, 32, device=device))
    expected = empty_pool(2, 32, torch.float32, device)
    rope_and_store(*x[:5], expected, torch.empty(3, 2, 32, device=device))
    assert torch.equal(kv.k[:, x.slots], expected.k[:, x.slots])
    assert torch.equal(kv.v[:, x.slots], expected.v[:, x.slots])
    assert pool[:, 0].isnan().all()
    assert pool[:, 2].isnan().all()


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(32, 32, 128), (28, 4, 80), (8, 1, 256)])
def test_the_default_tile_is_one_that_tuning_tries(heads: int, kv_heads: int, head_dim: int) -> None:
    shape = _shape(heads, kv_heads, head_dim, torch.bfloat16, torch.int8)
    for capability in (80, 86, 90, 100):
        assert TILES.default(capability, shape) in TILES.candidates(capability, shape)


def test_what_doesnt_fit_together_is_refused(device: torch.device) -> None:
    x = inputs(2, 4, 2, 32, torch.float32, device)
    kv, q = empty_pool(2, 32, torch.float32, device), torch.empty(2, 4, 32, device=device)
    with pytest.raises(ValueError, match="it must be float32, float16 or bfloat16"):
        rope_and_store(x.qkv[:, :-32], *x[1:5], kv, q)
    with pytest.raises(ValueError, match="slots is"):
        rope_and_store(x.qkv, x.positions, x.slots.int(), x.cos, x.sin, kv, q)
    with pytest.raises(ValueError, match=r"must be float32, as rotary_tables\(\) makes it"):
        rope_and_store(*x[:3], x.cos.double(), x.sin, kv, q)
    with pytest.raises(ValueError, match="even head_dim"):
        rope_and_store(*x[:5], empty_pool(2, 31, torch.float32, device), q[..., :31])
    with pytest.raises(ValueError, match="k_scale is None"):
        rope_and_store(*x[:5], PagedKV(kv.k.to(torch.int8), kv.v.to(torch.int8), 4), q)
    with target(Gpu("NVIDIA A10G", 86, 80)), pytest.raises(ValueError, match="NVIDIA A10G has no float8; use int8"):
        rope_and_store(*x[:5], empty_pool(2, 32, torch.float8_e4m3fn, device), q)
