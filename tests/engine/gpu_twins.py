"""Small models for the Triton kernels, on the CPU (interpreted) or a GPU, and the same ones for the CPU executor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Batch, Executor, PrefixGroup, Row
from engine.executor.cpu import CpuExecutor
from engine.executor.cuda import CudaExecutor, Pending
from engine.models.config import ModelConfig
from engine.models.llama import Llama
from engine.models.llama_gpu import LlamaGpu, build_gpu
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights, Tensors, build
from engine.request import Request, SamplingParams, Status

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = replace(
    SHAPES["tiny"],
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    n_layers=2,
    n_heads=2,
    n_kv_heads=1,
    head_dim=32,
    max_position_embeddings=128,
    max_context=128,
)


class Loud:
    """Random weights, large enough that logits tell tokens apart."""

    def __init__(self, seed: int = 0) -> None:
        self._weights = RandomWeights(seed)

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._weights.get(name, shape) * (1 if name.endswith("norm.weight") else 5)


class Twins(NamedTuple):
    """One model, for both executors."""

    gpu: LlamaGpu
    cpu: Llama


def twins(
    config: ModelConfig = SMALL,
    dtype: torch.dtype = torch.float32,
    *,
    deterministic: bool = False,
    kind: str | None = None,
) -> Twins:
    gpu = gpu_model(config, dtype, deterministic=deterministic, kind=kind)
    return Twins(gpu, build(config, Loud(), torch.float32, kind=kind))


def gpu_model(
    config: ModelConfig = SMALL,
    dtype: torch.dtype = torch.float32,
    *,
    deterministic: bool = False,
    kind: str | None = None,
) -> LlamaGpu:
    with Tensors(config, Loud(), dtype, DEVICE, kind=kind) as tensors:
        return build_gpu(tensors, deterministic=deterministic)


def cuda_executor(model: LlamaGpu, *, n_pages: int = 300, page_size: int = 1, **settings: Any) -> CudaExecutor:
    settings = {"max_running": 8, "cuda_graphs": False, **settings}
    return CudaExecutor(model, n_pages=n_pages, page_size=page_size, device=DEVICE, **settings)


def cpu_executor(model: Llama, *, n_pages: int = 300, page_size: int = 1) -> CpuExecutor:
    return CpuExecutor(model, n_pages=n_pages, page_size=page_size)


def engine(executor: Executor, **settings: Any) -> Engine:
    config = {"max_batch_tokens": 32, "max_running": 8, "page_size": executor.page_size, **settings}
    return Engine(executor, None, EngineConfig(**config))


def prompt(n: int, seed: int, vocab_size: int = SMALL.vocab_size) -> list[int]:
    return np.random.default_rng(seed).integers(3, vocab_size, n).tolist()


class Driver:
    """Steps requests through an executor by hand, each with pages of its own scattered over the pool."""

    def __init__(self, executor: CudaExecutor, seed: int = 0) -> None:
        self.executor = executor
        self._free = np.random.default_rng(seed).permutation(executor.n_pages).astype(np.int32).tolist()
        self._n = 0

    def request(
        self, tokens: Sequence[int], shares: tuple[Request, int] | None = None, *, room: int = 0, **params: Any
    ) -> Request:
        """`shares`: the first n tokens live in the pages of another request (n a multiple of the page size)."""
        size = self.executor.page_size
        stored = np.array([*tokens, *[0] * room], np.int64)
        pages = np.array([self._free.pop() for _ in range(-(-len(stored) // size))], np.int32)
        if shares is not None:
            pages[: shares[1] // size] = shares[0].pages[: shares[1] // size]
        self._n += 1
        return Request(
            id=self._n,
            key=stored[: len(tokens)],
            params=SamplingParams(**{"max_tokens": room, "temperature": 0.0, **params}),
            tokens=stored,
            n_tokens=len(tokens),
            pages=pages,
            n_pages=len(pages),
            status=Status.RUNNING,
        )

    def launch(self, rows: Sequence[tuple[Request, int, int]], groups: Sequence[PrefixGroup] = ()) -> Pending:
        """Rows (request, start, end); those that end at the last known token sample."""
        batch = Batch(0, tuple(Row(r, a, b - a, sample=b == r.n_tokens) for r, a, b in rows), tuple(groups))
        return self.executor.launch(batch)

    def logits(self, rows: Sequence[tuple[Request, int, int]], groups: Sequence[PrefixGroup] = ()) -> list[Tensor]:
        """Those that each row of the batch wants, on the host."""
        pending = self.launch(rows, groups)
        return [pending.row_logits(i).cpu().clone() for i in range(len(rows))]

    def step(self, *rows: tuple[Request, int, int], groups: Sequence[PrefixGroup] = ()) -> Any:
        """The result of one step."""
        return self.executor.collect(self.executor.sample(self.launch(rows, groups)))
