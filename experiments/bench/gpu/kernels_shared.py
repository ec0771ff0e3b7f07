"""Decoding of branches that share a long prefix: read once for all of them, beside each reading it for itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from engine.kernels import attention_decode as decode
from engine.kernels.attention_shared_prefix import attention_shared_prefix, plan_shared_prefixes
from engine.kernels.paged import Rows, SharedPrefixes
from engine.kernels.roofline import Work, floor_s
from engine.kernels.tiles import current_gpu
from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.figure import Figure, against_floor
from experiments.bench.gpu.job import TOLERANCE, distance, poisoned
from experiments.bench.gpu.paged_inputs import BF16, Inputs, Shape, inputs
from experiments.bench.gpu.timing import Call, median_s, n_rotating

TARGET = 8.0
"""Times faster with sharing than without: 64 branches of a prefix of 4k."""


class Plan(NamedTuple):
    shape: Shape
    branches: int
    prefix: int
    own: int
    target: float | None

    def case(self, setup: Setup) -> Case:
        return Case(str(self), lambda: compare(self, setup))

    def __str__(self) -> str:
        return f"{self.branches} branches of {self.prefix} + {self.own} keys, {self.shape}"


def plans(setup: Setup) -> Iterator[Plan]:
    branches, prefix, own = setup.pick((64, 4096, 128), (2, 32, 8))
    heads, kv_heads, head_dim = setup.pick((32, 8, 128), (4, 2, 32))
    yield Plan(Shape(heads, heads, head_dim), branches, prefix, own, TARGET)
    yield Plan(Shape(heads, kv_heads, head_dim), branches, prefix, own, None)
    if not setup.rehearsal:
        yield Plan(Shape(heads, heads, head_dim), 8, prefix, own, None)


def compare(plan: Plan, setup: Setup) -> Iterable[Figure]:
    shape, keys = plan.shape, plan.prefix + plan.own
    single = decode.work(plan.branches * keys, plan.branches, shape.heads, shape.kv_heads, shape.head_dim)
    prefix = decode.work(plan.prefix, 0, shape.heads, shape.kv_heads, shape.head_dim)
    tails = decode.work(plan.branches * plan.own, plan.branches, shape.heads, shape.kv_heads, shape.head_dim)
    shared = Work(prefix.bytes + tails.bytes, single.operations)  # read once, but multiplied with every query
    n = n_rotating(shared.bytes, setup.device)
    pairs = [calls(plan, setup) for _ in range(n)]
    error = check(plan, setup, pairs[0])
    with_s = median_s([pair.shared for pair in pairs], setup.device)
    without_s = median_s([pair.alone for pair in pairs], setup.device)
    yield against_floor(f"decode with sharing, {plan}", with_s, shared, setup.ceilings, error=error)
    # Without sharing the prefix comes from the L2 cache where it fits: the floor counts it once.
    floor = floor_s(shared, setup.ceilings)
    yield Figure(name=f"decode without sharing, {plan}", value=without_s, work=single, floor=floor)
    yield Figure(
        name=f"sharing, {plan}", value=without_s / with_s, unit="x", target=plan.target, aim="at least", error=error
    )


class Pair(NamedTuple):
    given: Inputs
    shared: Call
    alone: Call


def calls(plan: Plan, setup: Setup) -> Pair:
    """Both ways over the same inputs."""
    keys = plan.prefix + plan.own
    pages = plan.prefix // plan.shape.page_size
    new, contexts = [1] * plan.branches, [keys] * plan.branches
    given = inputs(plan.shape, new, contexts, setup.device, shared_pages=pages)
    group = plan.shape.heads // plan.shape.kv_heads
    planned = plan_shared_prefixes(
        [(np.arange(plan.branches, dtype=np.int32), 0, plan.prefix)],
        plan.branches,
        heads_per_kv=group,
        processors=current_gpu().processors,
        kv_heads=plan.shape.kv_heads,
    )
    arrays = {name: array for name, array in planned._asdict().items() if isinstance(array, np.ndarray)}
    there: dict[str, Any] = {name: torch.from_numpy(array).to(setup.device) for name, array in arrays.items()}
    groups = SharedPrefixes(**there, max_parts=planned.max_parts)

    def shared() -> object:
        parts = attention_shared_prefix(given.q, given.kv, given.rows, groups)
        return decode.attention_decode(
            given.q, given.kv, given.rows, max_keys=keys, shared=groups, parts=parts, out=given.out
        )

    def alone() -> object:
        return decode.attention_decode(given.q, given.kv, given.rows, max_keys=keys, out=given.out)

    return Pair(given, shared, alone)


def check(plan: Plan, setup: Setup, pair: Pair) -> float:
    """The larger of both errors on some rows. Raises Failed when it is too large."""
    given, keys = pair.given, plan.prefix + plan.own
    few = sorted({0, plan.branches // 2, plan.branches - 1})
    count = torch.arange(len(few) + 1, dtype=torch.int32, device=setup.device)
    rows = Rows(given.rows.tables, given.rows.table[few], given.rows.n_keys[few], count)
    expected = decode.attention_decode_reference(given.q[few].double(), given.kv, rows, max_keys=keys)
    errors = []
    for call in (pair.shared, pair.alone):
        poisoned(given.out)
        call()
        errors.append(distance(given.out[few], expected) + float(given.out.isnan().any()))
    if not max(errors) < TOLERANCE[BF16]:
        raise Failed(f"wrong: relative error {errors[0]:.3g} with sharing, {errors[1]:.3g} without")
    return max(errors)
