"""Our engine as the benchmarks run it: a model with random weights drawn on the device, engines over one executor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from engine.clock import stopwatch
from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.cuda import CudaExecutor
from engine.models.config import ModelConfig
from engine.models.llama_gpu import LlamaGpu, build_gpu
from engine.models.shapes import SHAPES
from engine.models.weights import Tensors
from engine.request import Request, SamplingParams, Tokens
from experiments.bench.gpu.case import Setup
from experiments.bench.gpu.timing import synchronize

REHEARSED = replace(
    SHAPES["tiny"],
    vocab_size=192,
    hidden_size=64,
    intermediate_size=96,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=32,
    max_position_embeddings=256,
    max_context=256,
    tied_embeddings=False,
)
"""So small that the interpreter gets through it."""
LONGEST = 16384
"""Tokens of context: plain rotary embedding goes on as far as one likes; with random weights no answer gets worse."""


class DeviceWeights:
    """Weights drawn where they will live, 13 GB in a second; otherwise like `RandomWeights`."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.device = device

    def has(self, name: str) -> bool:
        return True

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape, device=self.device)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator, device=self.device).mul_(0.02)


def model_config(setup: Setup) -> ModelConfig:
    """llama-7b with room for longer contexts, or its stand-in."""
    longer = replace(SHAPES["llama-7b"], max_position_embeddings=LONGEST, max_context=LONGEST)
    return setup.pick(longer, REHEARSED)


def make_model(setup: Setup, *, deterministic: bool = False) -> LlamaGpu:
    weights = DeviceWeights(0, setup.device)
    with Tensors(model_config(setup), weights, torch.bfloat16, setup.device) as tensors:
        return build_gpu(tensors, deterministic=deterministic)


def make_executor(model: LlamaGpu, config: EngineConfig, device: torch.device) -> CudaExecutor:
    """An executor for `config`, whose `pool_tokens` must be given. In a rehearsal `device` is the CPU."""
    if config.pool_tokens is None:
        raise ValueError("pool_tokens must be given: benchmarks don't size the pool by what happens to be free")
    return CudaExecutor(
        model,
        n_pages=config.pool_tokens // config.page_size,
        page_size=config.page_size,
        device=device,
        max_running=config.max_running,
        kv_dtype=config.kv_dtype,
        cuda_graphs=config.cuda_graphs,
    )


class Served(NamedTuple):
    seconds: float
    outputs: list[list[int]]
    computed_tokens: int
    """Prompt tokens, those that weren't in the cache."""


class Decoded(NamedTuple):
    """Decode steps of a batch in its steady state."""

    step_s: float
    """Median, from step to step on the host's clock."""
    mean_s: float
    context: float
    """Mean keys of a request at these steps."""


def serve(executor: CudaExecutor, config: EngineConfig, prompts: Sequence[Tokens], new_tokens: int) -> Served:
    """All prompts at once through a new engine (an empty cache). Raises RuntimeError when one fails."""
    engine = Engine(executor, None, config)
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    synchronize(executor_device(executor))
    begun = stopwatch()
    requests = [request for (request,) in engine.generate(prompts, params)]
    seconds = stopwatch() - begun
    raise_if_failed(requests)
    computed = sum(step.n_prefill for step in engine.metrics.steps)
    return Served(seconds, [list(request.output) for request in requests], computed)


@contextmanager
def decoding(
    executor: CudaExecutor, config: EngineConfig, prompts: Sequence[Tokens], steps: int
) -> Iterator[tuple[Engine, list[Request]]]:
    """An engine whose next `steps` steps decode one token of each prompt's request, and do nothing else."""
    engine = Engine(executor, None, config)
    params = SamplingParams(max_tokens=steps + WARM_TOKENS + 4, temperature=0.0, ignore_eos=True)
    requests = [request for prompt in prompts for request in engine.add(prompt, params)]
    while any(request.output_tokens < WARM_TOKENS and not request.finished for request in requests):
        engine.step()
    raise_if_failed(requests)
    try:
        yield engine, requests
    finally:
        for request in requests:
            engine.abort(request)
        engine.run()


def decode(executor: CudaExecutor, config: EngineConfig, prompts: Sequence[Tokens], steps: int) -> Decoded:
    with decoding(executor, config, prompts, steps) as (engine, requests):
        before = sum(request.n_tokens for request in requests)
        times = [stopwatch()]
        for _ in range(steps):
            engine.step()
            times.append(stopwatch())
        raise_if_failed(requests)
        after = sum(request.n_tokens for request in requests)
    if after - before != steps * len(prompts):
        raise RuntimeError(f"{steps} steps of {len(prompts)} requests gave {after - before} tokens")
    each = sorted(b - a for a, b in pairwise(times))
    context = (before + after) / 2 / len(prompts)
    return Decoded(each[len(each) // 2], (times[-1] - times[0]) / steps, context)


WARM_TOKENS = 3
"""Of each request, before the first step that counts."""


def raise_if_failed(requests: Sequence[Request]) -> None:
    failed = [request.error for request in requests if request.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(requests)} requests failed, the first with: {failed[0]}")


def executor_device(executor: CudaExecutor) -> torch.device:
    return torch.device(executor.device)
