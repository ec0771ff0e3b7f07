"""How fast a model prefills and decodes with its weights in 8 bits, beside the same in its dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.cpu import CpuExecutor
from engine.models.llama import Llama
from engine.request import SamplingParams
from experiments.bench.quantised_loss import random_texts


class Load(NamedTuple):
    """What is served in a run."""

    batch: int
    prompt_tokens: int
    """Of each."""
    new_tokens: int
    """Of each; all but the first are decoded."""


class Seconds(NamedTuple):
    """Of the steps of one run."""

    prefill: float
    decode: float


def served(model: Llama, load: Load) -> Seconds:
    """Runs it on a new engine without a cache. Raises RuntimeError when a request fails."""
    total = load.batch * (load.prompt_tokens + load.new_tokens)
    executor = CpuExecutor(model, n_pages=total, page_size=1)
    # All prompts in one step, so that no step mixes prompts and decodes.
    budget = load.batch * load.prompt_tokens
    engine = Engine(executor, None, EngineConfig(cache="none", max_batch_tokens=budget, max_running=load.batch))
    prompts = [text.tolist() for text in random_texts(model.config.vocab_size, load.batch, load.prompt_tokens)]
    params = SamplingParams(max_tokens=load.new_tokens, temperature=0.0, ignore_eos=True)
    failed = [request.error for (request,) in engine.generate(prompts, params) if request.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, the first with: {failed[0]}")
    prefill = decode = 0.0
    for step in engine.metrics.steps:
        seconds = step.schedule_s + step.cache_s + step.forward_s + step.other_s
        if step.n_prefill:
            prefill += seconds
        else:
            decode += seconds
    return Seconds(prefill, decode)


def rounds_of(models: Mapping[str, Llama], load: Load, rounds: int) -> dict[str, list[Seconds]]:
    """Models take turns within each round, which begins with another one each time; one unmeasured run comes first."""
    names = list(models)
    for name in names:
        served(models[name], load)
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name].append(served(models[name], load))
    return found
