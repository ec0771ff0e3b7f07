"""Choosing tokens: ours without a sort, beside the usual sampler that sorts the whole vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from engine.kernels import sample as sampling
from experiments.bench.gpu.case import Setup
from experiments.bench.gpu.job import Job, Plan

BF16 = torch.bfloat16
TEMPERATURE, TOP_K, TOP_P = 0.8, 50, 0.95
CHECKED = 3
"""Rows that are held against the reference, which takes a row at a time."""


def plans(setup: Setup) -> Iterator[Plan]:
    for vocab in setup.pick((32000, 128256), (300,)):
        for rows in setup.pick((1, 32, 128), (2,)):
            yield plan(setup, rows, vocab, drawn=True)
    yield plan(setup, setup.pick(32, 2), setup.pick(128256, 300), drawn=False)


def plan(setup: Setup, rows: int, vocab: int, *, drawn: bool) -> Plan:
    def make() -> Job:
        logits = torch.randn(rows, vocab, device=setup.device).mul_(4).to(BF16)
        draws = some_draws(rows, setup.device) if drawn else None
        out = torch.empty(rows, dtype=torch.int64, device=setup.device)
        status = torch.empty(rows, dtype=torch.int32, device=setup.device)
        params = sampling.Sampling(draws=draws)

        def call() -> object:
            return sampling.sample(logits, params, out=out, status=status)

        def check() -> float:
            """Share of the tokens that differ: a draw is a function of logits, seed and position."""
            out.fill_(-1)
            call()
            n = min(rows, CHECKED)
            some = None if draws is None else sampling.Draws(*(of_each[:n] for of_each in draws))
            expected = sampling.sample_reference(logits[:n].double(), sampling.Sampling(draws=some))
            bad = (out[:n] != expected.tokens) | (status[:n] != sampling.OK)
            return float(bad.float().mean()) + float((out < 0).any() or (status != sampling.OK).any())

        torch_name, other = ("torch, by sorting", by_sorting) if drawn else ("torch argmax", greedy)
        return Job(call, check, {torch_name: lambda: other(logits)})

    how = f"top-k {TOP_K}, top-p {TOP_P}" if drawn else "greedy"
    work = sampling.work(rows, vocab, bytes_per_number=2)
    return Plan(f"sample, {rows} x {vocab} bf16, {how}", make, work, tolerance=1e-9, note="error: tokens that differ")


def some_draws(rows: int, device: torch.device) -> sampling.Draws:
    def every(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((rows,), value, dtype=dtype, device=device)

    return sampling.Draws(
        torch.arange(rows, dtype=torch.int32, device=device),
        every(TEMPERATURE, torch.float32),
        every(TOP_K, torch.int32),
        every(TOP_P, torch.float64),
        every(0.0, torch.float32),
        torch.randint(0, 2**62, (rows,), device=device),
        every(7, torch.int64),
    )


def by_sorting(logits: Tensor) -> Tensor:
    """Top-k and top-p on the sorted row, then a draw by the exponential race; it waits for nobody."""
    values, ids = torch.sort(logits.float() / TEMPERATURE, dim=-1, descending=True)
    values[:, TOP_K:] = -torch.inf
    weights = torch.softmax(values, dim=-1)
    weights = weights.masked_fill(weights.cumsum(-1) - weights >= TOP_P, 0.0)
    winner = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
    return ids.gather(1, winner)


def greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)
