"""Greedy tokens of llama-110m: the CPU in float32, the GPU in float32 and bfloat16; equal but for near-ties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.cpu import CpuExecutor
from engine.models.config import ModelConfig
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights, Tensors, build
from engine.request import SamplingParams, Tokens
from experiments.bench.gpu import ours, prompts
from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.figure import Figure

NEAR_TIE = {"float32": 1e-3, "bfloat16": 0.15}
"""Where outputs part, the log-probabilities of the two tokens, by the CPU in float32, may differ by this much."""
SEED = 0


class Parting(NamedTuple):
    """The first position at which a request's outputs differ."""

    request: int
    position: int
    margin: float
    """Log-probability of the CPU's token less that of the GPU's, both after the same text."""


class Compared(NamedTuple):
    tokens: int
    """Compared: each request's up to where its outputs part."""
    partings: tuple[Parting, ...]

    def wrong(self, near_tie: float) -> list[Parting]:
        return [parting for parting in self.partings if not parting.margin <= near_tie]


def cases(setup: Setup) -> Iterator[Case]:
    config = setup.pick(SHAPES["llama-110m"], ours.REHEARSED)
    n, longest, new_tokens = setup.pick((16, 200, 48), (2, 8, 2))
    given = ragged(n, longest, config.vocab_size)
    reference = CpuReference(config, given, new_tokens)
    for dtype in NEAR_TIE:
        yield Case(f"GPU {dtype} against CPU float32", partial(figures, setup, config, reference, dtype))


def figures(setup: Setup, config: ModelConfig, reference: CpuReference, dtype: str) -> Iterator[Figure]:
    """Raises Failed where outputs part at something that is no near-tie."""
    found = reference.compare(gpu_outputs(config, reference.prompts, reference.new_tokens, dtype, setup.device))
    margins = [parting.margin for parting in found.partings]
    yield Figure(
        name=f"requests whose greedy tokens are those of the CPU, {dtype}",
        value=1 - len(margins) / len(reference.prompts),
        unit="share",
        note=f"{found.tokens} tokens compared; the others part at margins of up to {max(margins, default=0.0):.2g} "
        f"(log-probability; allowed {NEAR_TIE[dtype]})",
    )
    if wrong := found.wrong(NEAR_TIE[dtype]):
        raise Failed(f"greedy tokens differ, and not at near-ties: {wrong}")


def ragged(n: int, longest: int, vocabulary: int) -> list[Tokens]:
    """Prompts of 1 to `longest` tokens; some share a prefix."""
    long = prompts.random_prompts(n, longest, vocabulary, seed=5)
    lengths = [max(1, longest * i // n) for i in range(1, n + 1)]
    given = [long[i % 3][:length] for i, length in enumerate(lengths)]
    return [*given[:-1], long[n - 1]]


class CpuReference:
    """Greedy outputs of our CPU path in float32, and how close a call each token was."""

    def __init__(self, config: ModelConfig, given: Sequence[Tokens], new_tokens: int) -> None:
        self.prompts = list(given)
        self.new_tokens = new_tokens
        model = build(config, RandomWeights(SEED), torch.float32)
        slots = sum(map(len, given)) + (new_tokens + 8) * len(given)
        self._executor = CpuExecutor(model, n_pages=slots, page_size=1)
        self.outputs = generate(self._engine(), given, new_tokens)

    def compare(self, outputs: Sequence[Sequence[int]]) -> Compared:
        partings = []
        tokens = 0
        for i, (mine, theirs) in enumerate(zip(self.outputs, outputs, strict=True)):
            if len(mine) != len(theirs):
                raise Failed(f"request {i} has {len(theirs)} tokens on the GPU, {len(mine)} on the CPU")
            at = next((j for j, (a, b) in enumerate(zip(mine, theirs)) if a != b), len(mine))
            tokens += min(at + 1, len(mine))
            if at < len(mine):
                partings.append(Parting(i, at, self._margin(i, at, theirs[at])))
        return Compared(tokens, tuple(partings))

    def _margin(self, request: int, position: int, other: int) -> float:
        text = [*self.prompts[request].tolist(), *self.outputs[request][:position]]
        (own,), (their,) = self._engine().score(text, [[self.outputs[request][position]], [other]])
        return own.logprob - their.logprob

    def _engine(self) -> Engine:
        return Engine(self._executor, None, EngineConfig(max_running=len(self.prompts)))


def gpu_outputs(
    config: ModelConfig, given: Sequence[Tokens], new_tokens: int, dtype: str, device: torch.device
) -> list[list[int]]:
    """Greedy outputs of the GPU path with the same weights."""
    from engine.models.llama_gpu import build_gpu
    from engine.models.weights import GPU_DTYPES

    with Tensors(config, RandomWeights(SEED), GPU_DTYPES[dtype], device) as tensors:
        model = build_gpu(tensors)
    slots = sum(map(len, given)) + (new_tokens + 8) * len(given)
    settings = EngineConfig(
        dtype=dtype,
        device=device.type,
        pool_tokens=max(slots, config.max_context),
        max_running=len(given),
        overlap=True,
    )
    return generate(Engine(ours.make_executor(model, settings, device), None, settings), given, new_tokens)


def generate(engine: Engine, given: Sequence[Tokens], new_tokens: int) -> list[list[int]]:
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    requests = [request for (request,) in engine.generate(given, params)]
    ours.raise_if_failed(requests)
    return [list(request.output) for request in requests]
