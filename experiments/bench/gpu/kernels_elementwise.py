"""Norms, rotary embedding and activation: as fast as memory, or they are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from engine.kernels import rms_norm as norm
from engine.kernels import rope_and_store as rope
from engine.kernels import silu_mul as gate
from engine.kernels.paged import PagedKV
from experiments.bench.gpu.case import Setup
from experiments.bench.gpu.job import Job, Plan, distance, poisoned

TARGET = 0.9
"""Least share of the bandwidth."""
BF16 = torch.bfloat16
EPS = 1e-5


def plans(setup: Setup) -> Iterator[Plan]:
    tokens, hidden, inner = setup.pick((16384, 4096, 11008), (3, 96, 96))
    yield Plan(
        f"rms_norm, {tokens} x {hidden} bf16",
        lambda: norm_job(setup, tokens, hidden, residual=False),
        norm.work(tokens, hidden, residual=False),
        TARGET,
    )
    yield Plan(
        f"rms_norm with residual, {tokens} x {hidden} bf16",
        lambda: norm_job(setup, tokens, hidden, residual=True),
        norm.work(tokens, hidden, residual=True),
        TARGET,
    )
    yield Plan(
        f"silu_mul, {tokens} x {inner} bf16",
        lambda: gate_job(setup, tokens, inner),
        gate.work(tokens, inner),
        TARGET,
    )
    heads, head_dim = setup.pick((32, 128), (2, 32))
    for kv_heads in (heads, max(1, heads // 4)):
        yield Plan(
            f"rope_and_store, {tokens} tokens, heads {heads}/{kv_heads}, bf16",
            partial(rope_job, setup, tokens, heads, kv_heads, head_dim, BF16),
            rope.work(tokens, heads, kv_heads, head_dim),
            TARGET,
        )
    yield Plan(
        f"rope_and_store, {tokens} tokens, heads {heads}/{heads}, int8 pool",
        lambda: rope_job(setup, tokens, heads, heads, head_dim, torch.int8),
        rope.work(tokens, heads, heads, head_dim, bytes_per_stored=1),
    )
    yield from small_plans(setup, hidden, inner)


def small_plans(setup: Setup, hidden: int, inner: int) -> Iterator[Plan]:
    """Decode sizes, where a kernel is over before the memory is busy: no target, but they show what a launch costs."""
    rows = setup.pick(32, 2)
    note = "too small to fill the memory pipes: it shows what a launch costs"
    yield Plan(
        f"rms_norm with residual, {rows} x {hidden} bf16",
        lambda: norm_job(setup, rows, hidden, residual=True),
        norm.work(rows, hidden, residual=True),
        note=note,
    )
    yield Plan(
        f"silu_mul, {rows} x {inner} bf16", lambda: gate_job(setup, rows, inner), gate.work(rows, inner), note=note
    )


def norm_job(setup: Setup, tokens: int, size: int, *, residual: bool) -> Job:
    x = torch.randn(tokens, size, device=setup.device, dtype=BF16)
    weight = torch.rand(size, device=setup.device, dtype=BF16) + 0.5
    before = torch.randn_like(x) if residual else None
    out = torch.empty_like(x)

    def call() -> object:
        return norm.rms_norm(x, weight, EPS, residual=before, out=out)

    def check() -> float:
        wide = None if before is None else before.double()
        expected = norm.rms_norm_reference(x.double(), weight.double(), EPS, residual=wide)
        poisoned(out)
        call()
        return distance(out, expected)

    return Job(
        call, check, {"torch": lambda: torch.nn.functional.rms_norm(x, (size,), weight, EPS)} if not residual else {}
    )


def gate_job(setup: Setup, tokens: int, inner: int) -> Job:
    gate_up = torch.randn(tokens, 2 * inner, device=setup.device, dtype=BF16)
    out = torch.empty(tokens, inner, device=setup.device, dtype=BF16)

    def call() -> object:
        return gate.silu_mul(gate_up, out=out)

    def check() -> float:
        poisoned(out)
        call()
        return distance(out, gate.silu_mul_reference(gate_up.double()))

    return Job(call, check)


def rope_job(setup: Setup, tokens: int, heads: int, kv_heads: int, head_dim: int, pool: torch.dtype) -> Job:
    device = setup.device
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, device=device, dtype=BF16)
    positions = torch.arange(tokens, device=device)
    slots = torch.randperm(tokens, device=device)
    angles = torch.rand(tokens, head_dim // 2, device=device) * 6.28
    cos, sin = angles.cos(), angles.sin()
    q_out = torch.empty(tokens, heads, head_dim, device=device, dtype=BF16)

    def new_pool(dtype: torch.dtype) -> PagedKV:
        k, v = (torch.empty(kv_heads, tokens, head_dim, device=device, dtype=dtype) for _ in range(2))
        scales = [torch.empty(kv_heads, tokens, device=device) if dtype.itemsize == 1 else None for _ in range(2)]
        return PagedKV(k, v, 1, *scales)

    kv = new_pool(pool)

    def call() -> object:
        return rope.rope_and_store(qkv, positions, slots, cos, sin, kv, q_out)

    def check() -> float:
        poisoned(q_out, kv.k, kv.v)
        call()
        wide = new_pool(torch.float64)
        q = torch.empty(q_out.shape, device=device, dtype=torch.float64)
        rope.rope_and_store_reference(qkv.double(), positions, slots, cos.double(), sin.double(), wide, q)
        errors = [distance(q_out, q)]
        if kv.k_scale is not None and kv.v_scale is not None:  # what quantisation itself loses is about 0.4 %
            errors += [distance(kv.k.double() * kv.k_scale[..., None], wide.k)]
            errors += [distance(kv.v.double() * kv.v_scale[..., None], wide.v)]
        else:
            errors += [distance(kv.k, wide.k), distance(kv.v, wide.v)]
        return max(errors)

    return Job(call, check)
