"""What weights in 8 bits lose: next-token distributions of a model against those of the same model in float32."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.base import Batch, Row
from engine.executor.cpu import CpuExecutor
from engine.models.llama import Llama
from engine.models.load import find_model, load_model
from engine.models.quantise import dequantised, is_quantised, quantise, weight_bytes
from engine.models.weights import Weights, build, dtype_named, tensor_shapes
from engine.request import Request, SamplingParams, Status, Tokens
from engine.tokenizer import load_tokenizer
from experiments.statistics import Interval, bootstrap_interval


class Variant(NamedTuple):
    """How the weights of a model are kept."""

    name: str
    dtype: str
    """That is computed in."""
    kind: str | None = None
    """8-bit weights: int8 or fp8."""


EXACT = Variant("float32", "float32")
VARIANTS = (
    EXACT,
    Variant("bfloat16", "bfloat16"),
    Variant("int8, float32", "float32", "int8"),
    Variant("int8, bfloat16", "bfloat16", "int8"),
    Variant("fp8, float32", "float32", "fp8"),
)


class Loss(NamedTuple):
    """Of a variant on some texts, the same for all variants. Intervals are over texts: whole ones are drawn."""

    n_positions: int
    perplexity: float | None
    """None where the weights are random: what they say means nothing."""
    perplexity_ratio: Interval
    """To that in float32."""
    kl: Interval
    """Mean KL divergence from float32's distribution to the variant's, nats."""
    top_1: Interval
    """Share of positions whose likeliest token is that of float32."""


class Dequantised:
    """Weights as they are after quantising: 8 bits computed in any dtype, on machines that can't store them."""

    def __init__(self, weights: Weights, kind: str) -> None:
        self._weights, self._kind = weights, kind

    def has(self, name: str) -> bool:
        return self._weights.has(name)

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._weights.get(name, shape)
        return dequantised(quantise(tensor, self._kind), torch.float32) if is_quantised(name) else tensor


def load(name_or_path: str, variant: Variant, seed: int = 0) -> Llama:
    """Raises ModelError. fp8, which CPUs don't store, is computed from the dequantised weights."""
    if variant.kind == "fp8":
        config, weights = find_model(name_or_path, seed)
        return build(config, Dequantised(weights, variant.kind), dtype_named(variant.dtype))
    return load_model(name_or_path, variant.dtype, seed, kind=variant.kind)


def bytes_of(name_or_path: str, variant: Variant) -> int:
    """Of all weights as the variant stores them."""
    config, _ = find_model(name_or_path, 0)
    return weight_bytes(tensor_shapes(config), dtype_named(variant.dtype), variant.kind)


def stories(model: Llama, folder: Path, n: int, *, max_tokens: int = 200) -> list[Tokens]:
    """Texts of a trained model: its known greedy story, and `n` that it makes at temperature 1 (seeds 0, 1, ...)."""
    tokenizer = load_tokenizer(str(folder))
    known = tokenizer.encode((folder / "expected_greedy.txt").read_text(encoding="utf-8").strip())
    start = list(known[:1])
    executor = CpuExecutor(model, n_pages=(n + 1) * (max_tokens + 1), page_size=1)
    engine = Engine(executor, None, EngineConfig(cache="none"))
    params = [SamplingParams(max_tokens=max_tokens, temperature=1.0, seed=i, ignore_eos=True) for i in range(n)]
    made = [[*start, *request.output] for (request,) in engine.generate([start] * n, params)]
    return [np.array(tokens, np.int64) for tokens in (known[: model.config.max_context], *made)]


def random_texts(vocab_size: int, n: int, length: int, seed: int = 0) -> list[Tokens]:
    """For random weights, to which any token is as good as another."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab_size, length) for _ in range(n)]


def log_probabilities(model: Llama, text: Tokens) -> Tensor:
    """Of every next token at every position of a text: float64 [tokens, vocab]."""
    executor = CpuExecutor(model, n_pages=len(text), page_size=1)
    request = Request(
        id=0,
        key=text,
        params=SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0),
        tokens=text,
        n_tokens=len(text),
        pages=np.arange(len(text), dtype=np.int32),
        n_pages=len(text),
        status=Status.RUNNING,
    )
    logits = executor.launch(Batch(0, (Row(request, 0, len(text), sample=True),))).logits
    return torch.log_softmax(logits.double(), dim=-1)


def losses(models: Sequence[Llama], texts: Sequence[Tokens], *, trained: bool) -> Iterator[Loss]:
    """One of each model; the first is the one that the others are compared with."""
    nll: list[list[float]] = [[] for _ in models]
    kl: list[list[float]] = [[] for _ in models]
    same: list[list[float]] = [[] for _ in models]
    of_text: list[int] = []
    for i, text in enumerate(texts):
        exact = log_probabilities(models[0], text)
        following = torch.from_numpy(text[1:])[:, None]
        of_text += [i] * (len(text) - 1)
        for k, model in enumerate(models):
            found = exact if k == 0 else log_probabilities(model, text)
            found = found[:-1]
            nll[k] += (-found.gather(1, following)[:, 0]).tolist()
            kl[k] += (exact[:-1].exp() * (exact[:-1] - found)).sum(-1).tolist()
            same[k] += (found.argmax(-1) == exact[:-1].argmax(-1)).double().tolist()
    for k in range(len(models)):
        ratio = bootstrap_interval(np.array(nll[k]) - np.array(nll[0]), of_text)
        yield Loss(
            n_positions=len(of_text),
            perplexity=math.exp(float(np.mean(nll[k]))) if trained else None,
            perplexity_ratio=ratio._replace(value=_exp(ratio.value), low=_exp(ratio.low), high=_exp(ratio.high)),
            kl=bootstrap_interval(kl[k], of_text),
            top_1=bootstrap_interval(same[k], of_text),
        )


def _exp(x: float | None) -> float | None:
    return None if x is None else math.exp(x)
