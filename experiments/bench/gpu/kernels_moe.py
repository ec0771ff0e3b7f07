"""A layer of Mixtral 8x7B's experts, beside the vendor's products alone on pairs that are already sorted and split
evenly; and the router."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from engine.kernels import moe as mixture
from engine.kernels import route as router
from engine.kernels.tiles import current_gpu
from experiments.bench.gpu.case import Failed, Setup
from experiments.bench.gpu.job import Job, Plan, distance, poisoned

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
K, EXPERTS = 2, 8
CHECKED = 16
"""Tokens that are held against float64."""


def plans(setup: Setup) -> Iterator[Plan]:
    for tokens in setup.pick((1, 8, 32, 64, 128, 256, 4096), (1, 5)):
        yield experts_plan(setup, tokens, BF16)
    for stored in (torch.int8, FP8) if setup.rehearsal or current_gpu().capability >= 89 else (torch.int8,):
        for tokens in setup.pick((1, 32, 4096), (3,)):
            yield experts_plan(setup, tokens, stored)
    for tokens in setup.pick((32, 4096), (3,)):
        work = router.work(tokens, EXPERTS, K)
        note = "too small to fill the memory pipes: it shows what a launch costs"
        yield Plan(f"route, {tokens} tokens", partial(route_job, setup, tokens), work, note=note)


def experts_plan(setup: Setup, tokens: int, stored: torch.dtype) -> Plan:
    hidden, inner = setup.pick((4096, 14336), (48, 32))
    # The same for all sets of inputs, so that how many experts are hit is known before.
    chosen = torch.rand(tokens, EXPERTS, generator=torch.Generator().manual_seed(tokens)).topk(K, dim=1).indices
    hit = len(chosen.unique())
    work = mixture.work(tokens, K, EXPERTS, hidden, inner, hit=hit, bytes_per_weight=stored.itemsize)
    name = "" if stored == BF16 else f", {str(stored).removeprefix('torch.')} weights"
    make = partial(experts_job, setup, chosen.to(setup.device, torch.int32), hidden, inner, stored)
    return Plan(f"moe, {tokens} tokens to {hit} experts of {EXPERTS}, {hidden} x {inner} bf16{name}", make, work)


def experts_job(setup: Setup, chosen: Tensor, hidden: int, inner: int, stored: torch.dtype) -> Job:
    device, tokens = setup.device, len(chosen)
    x, out = (torch.randn(tokens, hidden, device=device).to(BF16) for _ in range(2))
    shares = torch.rand(tokens, K, device=device)
    gate_up, gate_up_scale = experts_weights((EXPERTS, 2 * inner, hidden), stored, device)
    down, down_scale = experts_weights((EXPERTS, hidden, inner), stored, device)

    def call() -> object:
        return mixture.moe(
            x, gate_up, down, chosen, shares, gate_up_scale=gate_up_scale, down_scale=down_scale, out=out
        )

    def check() -> float:
        poisoned(out)
        call()
        last = x[-1:], gate_up, down, chosen[-1:], shares[-1:]
        alone = mixture.moe(*last, gate_up_scale=gate_up_scale, down_scale=down_scale)
        if not torch.equal(alone[0], out[-1]):
            raise Failed(f"the last of {tokens} tokens has other bits than the same token alone")
        few = torch.randperm(tokens)[:CHECKED].to(device)
        some = x[few].double(), gate_up, down, chosen[few], shares[few]
        expected = mixture.moe_reference(*some, gate_up_scale=gate_up_scale, down_scale=down_scale)
        return distance(out[few], expected) + float(out.isnan().any())

    if stored != BF16:
        return Job(call, check)
    sorted_x = torch.randn(EXPERTS, -(-tokens * K // EXPERTS), hidden, device=device).to(BF16)

    def products() -> object:
        gate, up = torch.bmm(sorted_x, gate_up.transpose(1, 2)).chunk(2, dim=2)
        return torch.bmm(torch.nn.functional.silu(gate) * up, down.transpose(1, 2))

    return Job(call, check, {"torch.bmm, sorted and even": products})


def experts_weights(
    shape: tuple[int, int, int], stored: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """And their scales, where they need them. An expert at a time: float32 is larger."""
    weights = torch.empty(shape, dtype=stored, device=device)
    for expert in weights:
        drawn = torch.randn(shape[1:], device=device)
        expert.copy_(drawn * shape[2] ** -0.5 if stored == BF16 else (40 * drawn).clamp(-127, 127))
    scale = None if stored == BF16 else torch.full(shape[:2], shape[2] ** -0.5 / 40, device=device)
    return weights, scale


def route_job(setup: Setup, tokens: int) -> Job:
    logits = torch.randn(tokens, EXPERTS, device=setup.device, dtype=BF16)

    def call() -> object:
        return router.route(logits, K)

    def check() -> float:
        found, expected = router.route(logits, K), router.route_reference(logits.double(), K)
        if not torch.equal(found.chosen, expected.chosen):
            raise Failed("other experts than the reference's")
        return distance(found.shares, expected.shares)

    def by_torch() -> object:
        shares, chosen = torch.softmax(logits.float(), dim=1).topk(K, dim=1)
        return shares / shares.sum(dim=1, keepdim=True), chosen

    return Job(call, check, {"torch, softmax and topk": by_torch})
