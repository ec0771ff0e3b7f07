"""Constrained decoding end to end: with jump-forward, without it, and without a grammar, in turns.

A batch is kept full: as one output ends, the next begins. Tokens are sampled at temperature 1: a model with random
weights that takes the likeliest would write some number without an end. Prompts are in the cache, outputs never are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.clock import stopwatch
from engine.config import EngineConfig
from engine.constraints.grammar import regex
from engine.constraints.session import Counts
from engine.engine import Engine
from engine.make import make_engine
from engine.policies.base import Ctx, RequestView, RetentionPolicy
from engine.request import SamplingParams
from experiments.bench.constraint_inputs import MAX_TOKENS, Task
from experiments.statistics import Interval, mean_interval, repeat_ratio

RUN_LENGTHS = (1, 4, 8, 16)
"""Tokens of a row in the passes whose cost is measured."""
OUTPUTS_A_ROW = 2
"""One after the other, in each row of the batch."""


class KeepPrompts(RetentionPolicy):
    """Outputs are not cached: each run decodes its own anew, while its prompt is found."""

    def keep(self, request: RequestView, n_new: int, ctx: Ctx) -> int:
        return max(0, n_new - request.output_tokens)


class Decoding(NamedTuple):
    """One task at one batch size; ratios are of tokens a second, over paired rounds."""

    task: str
    batch: int
    tokens: int
    """Of all outputs of one round."""
    forced_share: float
    jump_per_s: Interval
    """Output tokens a second."""
    decoded_per_s: Interval
    free_per_s: Interval
    """Without a grammar, outputs of the same lengths."""
    speedup: Interval
    """With jump-forward over without."""
    bound: float
    """1 / (1 - share forced): if forced tokens cost nothing."""
    bound_here: float
    """If forced tokens cost what they cost this machine in a pass of many (see `PassCost`)."""
    overhead: Interval
    """Time of constrained decoding without jump-forward over that of unconstrained decoding, less 1."""
    waited_share: float
    """Of the wall time of runs with jump-forward: the engine waited for masks."""
    waited_share_decoded: float
    mask_us: float
    """Mean, in the background, while the model ran."""


class PassCost(NamedTuple):
    """What a pass over `batch` rows of `n_new` tokens each takes on top of a cached prompt."""

    batch: int
    n_new: int
    seconds: float


class _Run(NamedTuple):
    seconds: float
    lengths: list[int]
    counts: Counts
    """Of this run alone."""


class Bench:
    """One model in two engines that run `batch` outputs at once: with jump-forward and without."""

    def __init__(
        self, model: str, dtype: str, tokenizer: Path | None, backend: str, *, batch: int, pool_tokens: int
    ) -> None:
        self.batch = batch
        self.engines = {
            jump: make_engine(
                EngineConfig(
                    model=model,
                    dtype=dtype,
                    tokenizer=None if tokenizer is None else str(tokenizer),
                    device="cpu",
                    pool_tokens=pool_tokens,
                    max_running=batch,
                    grammar_backend=backend,
                    jump_forward=jump,
                    retention=f"{__file__}:KeepPrompts",
                )
            )
            for jump in (True, False)
        }

    def decoding(self, task: Task, rounds: int, costs: Sequence[PassCost]) -> Decoding:
        n = self.batch * OUTPUTS_A_ROW
        prompts = [task.prompts[i % len(task.prompts)] for i in range(n)]
        constrained = [SamplingParams(max_tokens=MAX_TOKENS, seed=i, grammar=regex(task.pattern)) for i in range(n)]
        lengths = [MAX_TOKENS] * n
        runs: dict[str, list[_Run]] = {"decoded": [], "free": [], "jump": []}
        for engine in self.engines.values():
            engine.flush_cache()
            _run(engine, prompts, SamplingParams(max_tokens=0))
        for i in range(rounds + 1):  # the first doesn't count
            order = list(runs)
            for kind in order[i % 3 :] + order[: i % 3]:
                free = [SamplingParams(max_tokens=length, seed=j, ignore_eos=True) for j, length in enumerate(lengths)]
                run = _run(self.engines[kind == "jump"], prompts, free if kind == "free" else constrained)
                lengths = run.lengths if kind == "decoded" else lengths
                runs[kind].append(run)
        return _summary(task, self.batch, {kind: each[1:] for kind, each in runs.items()}, costs)

    def pass_costs(self, task: Task, repeats: int) -> list[PassCost]:
        """Seconds of a pass: the prompt is cached, and `n_new` random tokens follow it."""
        engine = self.engines[False]
        assert engine.tokenizer is not None
        prompts = [engine.tokenizer.encode(task.prompts[i % len(task.prompts)]) for i in range(self.batch)]
        engine.flush_cache()
        _run(engine, prompts, SamplingParams(max_tokens=0))
        rng = np.random.default_rng(0)
        best = dict.fromkeys(RUN_LENGTHS, float("inf"))
        for _ in range(repeats):
            for n in RUN_LENGTHS:
                longer = [[*prompt, *rng.integers(3, engine.executor.vocab_size, n).tolist()] for prompt in prompts]
                best[n] = min(best[n], _run(engine, longer, SamplingParams(max_tokens=1, ignore_eos=True)).seconds)
        return [PassCost(self.batch, n, seconds) for n, seconds in best.items()]


def _run(engine: Engine, prompts: Sequence[str | Sequence[int]], params: SamplingParams | list[SamplingParams]) -> _Run:
    before = dataclasses.replace(engine.constraints.counts)
    begun = stopwatch()
    results = engine.generate(list(prompts), params)
    seconds = stopwatch() - begun
    for (request,) in results:
        if request.error is not None:
            raise RuntimeError(f"a request of the benchmark failed: {request.error}")
    after = engine.constraints.counts
    fields = [field.name for field in dataclasses.fields(Counts)]
    counts = Counts(**{name: getattr(after, name) - getattr(before, name) for name in fields})
    return _Run(seconds, [request.output_tokens for (request,) in results], counts)


def _summary(task: Task, batch: int, runs: dict[str, list[_Run]], costs: Sequence[PassCost]) -> Decoding:
    per_s = {kind: [sum(run.lengths) / run.seconds for run in each] for kind, each in runs.items()}
    jump, decoded = runs["jump"], runs["decoded"]
    n_tokens = sum(sum(run.lengths) for run in jump)
    share = sum(run.counts.forced_tokens for run in jump) / n_tokens
    masks = sum(run.counts.masks for run in jump + decoded)
    slower = repeat_ratio(per_s["decoded"], per_s["free"])
    return Decoding(
        task=task.name,
        batch=batch,
        tokens=n_tokens // len(jump),
        forced_share=share,
        jump_per_s=mean_interval(per_s["jump"]),
        decoded_per_s=mean_interval(per_s["decoded"]),
        free_per_s=mean_interval(per_s["free"]),
        speedup=repeat_ratio(per_s["decoded"], per_s["jump"]),
        bound=1 / (1 - share),
        bound_here=1 / (1 - share + share * forced_price(costs, batch)),
        overhead=slower._replace(value=_less_one(slower.value), low=_less_one(slower.low), high=_less_one(slower.high)),
        waited_share=_waited(jump),
        waited_share_decoded=_waited(decoded),
        mask_us=sum(run.counts.mask_s for run in jump + decoded) / masks * 1e6,
    )


def forced_price(costs: Sequence[PassCost], batch: int) -> float:
    """What one more token in a row's pass costs, in passes of one token a row: 0 if it came for nothing."""
    seconds = {cost.n_new: cost.seconds for cost in costs if cost.batch == batch}
    return max(0.0, (seconds[8] - seconds[1]) / 7 / seconds[1])


def _waited(runs: Sequence[_Run]) -> float:
    return sum(run.counts.waited_s for run in runs) / sum(run.seconds for run in runs)


def _less_one(value: float | None) -> float | None:
    return None if value is None else value - 1
