"""What only a GPU can prove; skipped on a machine without one.

In a rehearsal (RADIXLAB_REHEARSAL=1) these tests run under Triton's interpreter on a tiny model: that shows that the
tests are right, not that the GPU is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Executor
from engine.models.config import ModelConfig
from engine.models.shapes import SHAPES
from engine.models.weights import GPU_DTYPES, RandomWeights, Tensors
from engine.request import Request, SamplingParams, Tokens


@pytest.fixture(scope="session", autouse=True)
def needs_a_gpu() -> None:
    if not torch.cuda.is_available() and os.environ.get("RADIXLAB_REHEARSAL") != "1":
        pytest.skip("needs an NVIDIA GPU")


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def real(device: torch.device) -> bool:
    """On a GPU; False in a rehearsal."""
    return device.type == "cuda"


class Answer(NamedTuple):
    tokens: list[int]
    logprobs: list[float]


class Served(NamedTuple):
    answers: list[Answer]
    requests: list[Request]
    engine: Engine


Wrap = Callable[[Executor], Executor]


class Server:
    """llama-110m, or in a rehearsal a tiny stand-in, in engines of any configuration."""

    def __init__(self, device: torch.device) -> None:
        from experiments.bench.gpu.ours import REHEARSED

        self.device = device
        self.shape: ModelConfig = SHAPES["llama-110m"] if device.type == "cuda" else REHEARSED
        self.base = EngineConfig(
            dtype="bfloat16",
            device=device.type,
            max_running=32,
            max_batch_tokens=4096,
            pool_tokens=16384 if device.type == "cuda" else 512,
            overlap=False,
        )
        self._models: dict[tuple[str, bool, str | None], Any] = {}

    def model(self, dtype: str, deterministic: bool, weights: str | None = None) -> Any:
        from engine.models.llama_gpu import build_gpu

        key = dtype, deterministic, weights
        if key not in self._models:
            with Tensors(self.shape, RandomWeights(0), GPU_DTYPES[dtype], self.device, kind=weights) as tensors:
                self._models[key] = build_gpu(tensors, deterministic=deterministic)
        return self._models[key]

    def engine(self, wrap: Wrap | None = None, **changes: Any) -> Engine:
        from experiments.bench.gpu.ours import make_executor

        config = replace(self.base, **changes)
        model = self.model(config.dtype, config.deterministic, config.weights)
        executor = make_executor(model, config, self.device)
        return Engine(executor if wrap is None else wrap(executor), None, config)

    def serve(
        self,
        prompts: Sequence[Tokens],
        new_tokens: int,
        *,
        engine: Engine | None = None,
        params: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Served:
        """Greedy, unless `params` say otherwise, with the log-probability of every token."""
        engine = self.engine(**changes) if engine is None else engine
        wanted = {"temperature": 0.0, "logprobs": 0, **(params or {})}
        sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True, **wanted)
        requests = [request for (request,) in engine.generate(prompts, sampling)]
        failed = [request.error for request in requests if request.error is not None]
        assert not failed, failed
        answers = [Answer(list(request.output), [found.logprob for found in request.logprobs]) for request in requests]
        return Served(answers, requests, engine)


@pytest.fixture(scope="session")
def server(device: torch.device) -> Server:
    return Server(device)
