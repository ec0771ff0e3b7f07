"""Deterministic mode's attention, which cuts every row's keys at the same places whatever the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.kernels.attention_fixed import attention_fixed_split, fixed_block
from experiments.bench.gpu import floors
from experiments.bench.gpu.case import Setup
from experiments.bench.gpu.job import Job, Plan
from experiments.bench.gpu.kernels_attention import LONG, check_prompt, work_items
from experiments.bench.gpu.paged_inputs import BF16, Shape, inputs


def plans(setup: Setup) -> Iterator[Plan]:
    shape, long = setup.pick(Shape(32, 32, 128), Shape(2, 2, 32)), setup.pick(LONG, 40)
    yield fixed_plan(setup, shape, [1], long)
    yield fixed_plan(setup, shape, [1] * setup.pick(8, 2), long)
    yield fixed_plan(setup, shape, [long], long)


def fixed_plan(setup: Setup, shape: Shape, new: Sequence[int], keys: int) -> Plan:
    """No target of its own: the whole engine may be 10 % slower."""
    contexts = [keys] * len(new)

    def make() -> Job:
        given = inputs(shape, new, contexts, setup.device)
        block = fixed_block(shape.head_dim, BF16, shape.heads // shape.kv_heads)
        items = work_items(given, new, contexts, block)

        def call() -> object:
            return attention_fixed_split(given.q, given.kv, given.rows, items, max_keys=keys, out=given.out)

        return Job(call, lambda: check_prompt(given, new[-1], keys, call))

    what = f"batch {len(new)} x {keys} keys" if new[0] == 1 else f"{new[0]} tokens"
    work = floors.attention(shape.heads, shape.kv_heads, shape.head_dim, new, contexts)
    return Plan(f"attention_fixed_split, {what}, {shape}", make, work, note="deterministic mode")
