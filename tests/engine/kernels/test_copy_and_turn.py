"""What was copied and turned on is what would have been stored at the later positions in the first place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from engine.executor.gpu_pool import GpuPool
from engine.kernels.rope_and_store import rope_and_store_reference, rotary_tables
from engine.models.config import RopeConfig
from engine.models.llama_gpu import LlamaGpu
from engine.models.rotary import Rotary
from tests.engine.gpu_twins import DEVICE, SMALL

CONFIG = replace(SMALL, n_kv_heads=2)
YARN = replace(CONFIG, rope=RopeConfig(kind="yarn", factor=4.0, original_max_position=32))
N, OLD, TURN = 9, 21, 34
ERROR = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.int8: 1.6 / 127, torch.float8_e4m3fn: 2**-3}
"""Of the largest of a vector: rounding once more than when it is stored at once."""


def stored(config, dtype, at, slots, n_slots=64):
    """A pool with the same tokens at positions from `at` on, in these slots."""
    pool = GpuPool(config, n_pages=n_slots, page_size=1, dtype=dtype, device=DEVICE)
    for whole in (pool.k, pool.v):
        whole.copy_(torch.zeros(whole.shape).to(dtype))
    for scale in (pool.k_scale, pool.v_scale):
        if scale is not None:
            scale.zero_()
    compute = dtype if dtype in (torch.float32, torch.bfloat16) else torch.float32
    cos, sin = rotary_tables(Rotary(config, torch.float32), config.max_context, DEVICE)
    positions = torch.arange(at, at + N, device=DEVICE)
    for layer in range(config.n_layers):
        torch.manual_seed(layer)
        qkv = torch.randn(N, (config.n_heads + 2 * config.n_kv_heads) * config.head_dim).to(DEVICE, compute)
        out = torch.empty(N, config.n_heads, config.head_dim, dtype=compute, device=DEVICE)
        rope_and_store_reference(qkv, positions, slots, cos, sin, pool.layer(layer), out)
    return pool


def values(pool, which, slots):
    held, scale = getattr(pool, which), getattr(pool, f"{which}_scale")
    found = held[:, :, slots].float()
    return found if scale is None else found * scale[:, :, slots, None]


def model_of(config) -> LlamaGpu:
    nothing = torch.empty(0, device=DEVICE)
    return LlamaGpu(config, nothing, [], nothing, None)


@pytest.mark.parametrize("config", [CONFIG, YARN], ids=["plain", "yarn"])
@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_a_copy_is_what_would_have_been_stored_there(config, dtype):
    source = torch.tensor([3, 60, 1, 2, 40, 41, 42, 5, 0], device=DEVICE)
    target = torch.tensor([10, 11, 63, 12, 50, 51, 33, 34, 35], device=DEVICE)
    pool = stored(config, dtype, OLD, source)
    before = [x.clone() for x in (pool.k, pool.v)]
    old = torch.arange(OLD, OLD + N, device=DEVICE)
    pool.copy(source, target, model_of(config).turn_between(old, old + TURN))
    expected = stored(config, dtype, OLD + TURN, target)
    largest = values(expected, "k", target).abs().amax(-1, keepdim=True)
    assert ((values(pool, "k", target) - values(expected, "k", target)).abs() <= ERROR[dtype] * largest).all()
    assert torch.equal(values(pool, "v", target), values(expected, "v", target))
    others = [i for i in range(64) if i not in target.tolist()]
    for now, then in zip((pool.k, pool.v), before):
        assert torch.equal(now[:, :, others].float(), then[:, :, others].float())


@pytest.mark.parametrize("dtype", list(ERROR), ids=str)
def test_without_a_turn_every_bit_is_kept(dtype):
    source, target = torch.arange(N, device=DEVICE), torch.arange(20, 20 + N, device=DEVICE)
    pool = stored(CONFIG, dtype, OLD, source)
    pool.copy(source, target, None)
    for which in ("k", "v"):
        assert torch.equal(values(pool, which, target), values(pool, which, source))


@pytest.mark.parametrize("config", [CONFIG, YARN], ids=["plain", "yarn"])
def test_both_executors_turn_by_the_same_angles(config):
    old = torch.arange(N)
    ours = model_of(config).turn_between(old.to(DEVICE), (old + TURN).to(DEVICE))
    theirs = Rotary(config, torch.float64).between(old, old + TURN)
    for a, b in zip(ours, theirs):
        assert (a.cpu() - b).abs().max() < 1e-6
    assert theirs[0].dtype == torch.float64
    assert Rotary(config, torch.bfloat16).between(old, old)[0].dtype == torch.float32
