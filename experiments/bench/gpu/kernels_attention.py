"""Attention over the paged pool: decoding by bandwidth, prompts by the matrix units, beside torch's own where it can.

torch's scaled_dot_product_attention reads K and V that lie contiguously, all rows of one length; ours reads pages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.kernels import attention_decode as decode
from engine.kernels import attention_extend as extend
from engine.kernels.paged import Rows
from experiments.bench.gpu import floors
from experiments.bench.gpu.case import Setup
from experiments.bench.gpu.job import Job, Plan, distance, poisoned
from experiments.bench.gpu.paged_inputs import BF16, Inputs, Shape, contiguous, inputs
from experiments.bench.gpu.timing import Call

DECODE_TARGET = 0.85
"""Least share of the bandwidth, at contexts of 8k."""
EXTEND_TARGET = 0.60
"""Least share of the matrix ceiling, at 8k."""
LONG, CHECKED = 8192, 64
"""CHECKED: queries of a long row that are held against the reference, whose scores would fill the memory otherwise."""
SDPA = "torch SDPA"


def plans(setup: Setup) -> Iterator[Plan]:
    grouped, plain = setup.pick(Shape(32, 8, 128), Shape(4, 2, 32)), setup.pick(Shape(32, 32, 128), Shape(2, 2, 32))
    long, short = setup.pick((LONG, 512), (40, 24))
    batches = setup.pick(((1, long), (8, long), (32, short), (128, short)), ((1, long), (2, short)))
    for batch, keys in batches:
        yield decode_plan(setup, grouped, batch, keys, DECODE_TARGET if keys == long else None)
    for batch in setup.pick((1, 8), (1,)):
        yield decode_plan(setup, plain, batch, long, DECODE_TARGET)
    batch = setup.pick(8, 1)
    yield decode_plan(setup, grouped._replace(page_size=16), batch, long, DECODE_TARGET)
    for dtype in (torch.int8, torch.float8_e4m3fn):
        if dtype == torch.int8 or can_do_float8(setup):
            yield decode_plan(setup, grouped._replace(kv_dtype=dtype), batch, long, DECODE_TARGET)
    for shape in (grouped, plain):
        for tokens in setup.pick((1024, LONG), (20,)):
            yield extend_plan(setup, shape, tokens, tokens, EXTEND_TARGET if tokens == LONG else None)
    new, behind = setup.pick((512, LONG), (8, 24))
    yield extend_plan(setup, grouped._replace(page_size=16), new, behind + new, None)
    yield extend_plan(setup, grouped._replace(kv_dtype=torch.int8), new, behind + new, None)


def can_do_float8(setup: Setup) -> bool:
    return setup.device.type != "cuda" or torch.cuda.get_device_capability(setup.device) >= (8, 9)


def decode_plan(setup: Setup, shape: Shape, batch: int, keys: int, target: float | None) -> Plan:
    def make() -> Job:
        given = inputs(shape, [1] * batch, [keys] * batch, setup.device)

        def call() -> object:
            return decode.attention_decode(given.q, given.kv, given.rows, max_keys=keys, out=given.out)

        def check() -> float:
            poisoned(given.out)
            call()
            few = sorted({0, batch // 2, batch - 1})
            rows = Rows(
                given.rows.tables,
                given.rows.table[few],
                given.rows.n_keys[few],
                torch.arange(len(few) + 1, dtype=torch.int32, device=setup.device),
            )
            expected = decode.attention_decode_reference(given.q[few].double(), given.kv, rows, max_keys=keys)
            return distance(given.out[few], expected) + float(given.out.isnan().any())

        return Job(call, check, {} if shape.quantised else {SDPA: sdpa_decode(given, batch, keys)})

    kv_bytes = shape.kv_dtype.itemsize
    work = decode.work(
        batch * keys, batch, shape.heads, shape.kv_heads, shape.head_dim, kv_bytes=kv_bytes, scaled=shape.quantised
    )
    return Plan(f"attention_decode, batch {batch} x {keys} keys, {shape}", make, work, target)


def extend_plan(setup: Setup, shape: Shape, new: int, keys: int, target: float | None) -> Plan:
    group = shape.heads // shape.kv_heads

    def make() -> Job:
        given = inputs(shape, [new], [keys], setup.device)
        block = extend.extend_block(shape.head_dim, BF16, group, shape.kv_dtype)
        items = work_items(given, [new], [keys], block)

        def call() -> object:
            return extend.attention_extend(given.q, given.kv, given.rows, items, out=given.out)

        beside = {SDPA: sdpa_prompt(given, keys)} if new == keys and not shape.quantised else {}
        return Job(call, lambda: check_prompt(given, new, keys, call), beside)

    behind = f" behind {keys - new}" if keys > new else ""
    name = f"attention_extend, {new} tokens{behind}, {shape}"
    kv_bytes = shape.kv_dtype.itemsize
    work = floors.attention(shape.heads, shape.kv_heads, shape.head_dim, [new], [keys], kv_bytes=kv_bytes)
    return Plan(name, make, work, target)


def work_items(given: Inputs, new: Sequence[int], keys: Sequence[int], block: int) -> extend.ExtendItems:
    row, first = extend.plan_extend(np.array(new), block, np.array(keys))
    device = given.q.device
    return extend.ExtendItems(torch.from_numpy(row).to(device), torch.from_numpy(first).to(device), block)


def check_prompt(given: Inputs, new: int, keys: int, call: Call) -> float:
    """The last row's last queries and some from its middle against the reference."""
    poisoned(given.out)
    call()
    total, some = len(given.q), min(CHECKED, new)
    last = len(given.rows.n_keys) - 1
    errors = [float(given.out.isnan().any())]
    for back in {0, (new - some) // 2}:  # queries that end `back` before the row's last
        part = slice(total - back - some, total - back)
        device = given.q.device
        rows = Rows(
            given.rows.tables,
            given.rows.table[last:],
            torch.tensor([keys - back], dtype=torch.int32, device=device),
            torch.tensor([0, some], dtype=torch.int32, device=device),
        )
        expected = extend.attention_extend_reference(given.q[part].double(), given.kv, rows)
        errors.append(distance(given.out[part], expected))
    return max(errors)


def sdpa_decode(given: Inputs, batch: int, keys: int) -> Call:
    pairs = [contiguous(given, row, keys) for row in range(batch)]
    k, v = (torch.stack([pair[i] for pair in pairs]) for i in range(2))
    q = given.q[:, :, None]
    return lambda: sdpa(q, k, v, causal=False)


def sdpa_prompt(given: Inputs, keys: int) -> Call:
    k, v = (x[None] for x in contiguous(given, 0, keys))
    q = given.q.transpose(0, 1)[None].contiguous()
    return lambda: sdpa(q, k, v, causal=True)


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    grouped = q.shape[1] != k.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=grouped)
