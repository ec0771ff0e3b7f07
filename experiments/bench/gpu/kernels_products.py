"""Products of our own beside the vendor's: those whose rows have the same bits in any batch, those of 8-bit weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from engine.kernels import matmul_invariant as invariant
from engine.kernels import matmul_quantized as quantised
from engine.models.quantise import quantise
from experiments.bench.gpu.case import Failed, Setup
from experiments.bench.gpu.job import Job, Plan, distance, poisoned

BF16 = torch.bfloat16


def plans(setup: Setup) -> Iterator[Plan]:
    shapes = setup.pick(((22016, 4096), (4096, 11008)), ((48, 64),))
    for n, k in shapes:
        for m in setup.pick((1, 32, 128, 8192), (1, 5)):
            yield product_plan(setup, m, n, k)
            yield quantised_plan(setup, m, n, k)


def product_plan(setup: Setup, m: int, n: int, k: int) -> Plan:
    def make() -> Job:
        x = torch.randn(m, k, device=setup.device, dtype=BF16)
        weight = torch.randn(n, k, device=setup.device, dtype=BF16)
        out, theirs = (torch.empty(m, n, device=setup.device, dtype=BF16) for _ in range(2))

        def call() -> object:
            return invariant.matmul_invariant(x, weight, out=out)

        def check() -> float:
            poisoned(out)
            call()
            alone = invariant.matmul_invariant(x[-1:], weight)
            if not torch.equal(alone[0], out[-1]):
                raise Failed(f"the last of {m} rows has other bits than the same row alone")
            few = torch.tensor(sorted({0, m // 2, m - 1}), device=setup.device)
            expected = invariant.matmul_invariant_reference(x[few].double(), weight.double())
            return distance(out[few], expected) + float(out.isnan().any())

        def vendor() -> object:
            return torch.mm(x, weight.T, out=theirs) if m > 1 else F.linear(x, weight)

        return Job(call, check, {"F.linear": vendor})

    return Plan(f"matmul_invariant, {m} x {k} by {k} x {n}", make, invariant.work(m, n, k))


def quantised_plan(setup: Setup, m: int, n: int, k: int) -> Plan:
    """int8: every GPU has it. Beside it the vendor's product of the same weight in bfloat16, with twice the bytes."""

    def make() -> Job:
        x = torch.randn(m, k, device=setup.device, dtype=BF16)
        weight = torch.randn(n, k, device=setup.device, dtype=BF16)
        stored, scale = quantise(weight, "int8")
        out, theirs = (torch.empty(m, n, device=setup.device, dtype=BF16) for _ in range(2))

        def call() -> object:
            return quantised.matmul_quantized(x, stored, scale, out=out)

        def check() -> float:
            poisoned(out)
            call()
            few = torch.tensor(sorted({0, m // 2, m - 1}), device=setup.device)
            expected = quantised.matmul_quantized_reference(x[few].double(), stored, scale)
            return distance(out[few], expected) + float(out.isnan().any())

        def vendor() -> object:
            return torch.mm(x, weight.T, out=theirs) if m > 1 else F.linear(x, weight)

        return Job(call, check, {"F.linear in bfloat16": vendor})

    return Plan(f"matmul_quantized int8, {m} x {k} by {k} x {n}", make, quantised.work(m, n, k))
