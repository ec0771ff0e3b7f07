"""What masks cost by themselves: compiling a grammar up to its first mask, each mask, and how much is forced."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from engine.constraints.backends import make_backend
from engine.constraints.base import Backend, GrammarError, GrammarLimits, Mask
from engine.constraints.grammar import regex
from engine.tokenizer import Tokenizer
from experiments.bench import maskbench
from experiments.bench.constraint_inputs import MAX_TOKENS, Task

OUTPUTS = 20
"""Followed through each regex."""
_LIMITS = GrammarLimits(compile_fuel=100_000_000, max_states=1_000_000)
"""Above the defaults: our own machine, which knows no laziness, wants more for [\\w\\d\\s]{1,16} over all Unicode."""


class MaskCost(NamedTuple):
    """Percentiles are over masks, or over grammars; None where there are too few."""

    grammar: str
    backend: str
    vocabulary: str
    compiled: int
    """Times that a grammar was compiled: one regex again and again, or as many schemas."""
    refused: int
    """Grammars that the backend doesn't serve."""
    masks: int
    mask_us_p50: float | None
    mask_us_p99: float | None
    first_mask_ms_p50: float | None
    """From the grammar's text to the mask of the first token."""
    first_mask_ms_p99: float | None
    forced_share: float | None
    """Of the outputs' tokens."""


class _Sample(NamedTuple):
    """What one grammar gave."""

    first_mask_s: float
    mask_s: tuple[float, ...]
    tokens: int
    forced_tokens: int


def backend_of(name: str, tokenizer: Tokenizer) -> Backend:
    return make_backend(name, tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids, limits=_LIMITS)


def regex_cost(task: Task, name: str, vocabulary: str, tokenizer: Tokenizer, repeats: int) -> MaskCost:
    """`OUTPUTS` outputs whose tokens are drawn evenly from what is allowed; compiled `repeats` times over."""
    backend = backend_of(name, tokenizer)
    try:
        samples = [_walks(backend, task.pattern, tokenizer, OUTPUTS if i == 0 else 1) for i in range(repeats)]
    except GrammarError:
        samples = []
    return _cost(f"{task.name} regex", name, vocabulary, samples, refused=int(not samples))


def schema_cost(data: Path, n: int, name: str, vocabulary: str, tokenizer: Tokenizer) -> MaskCost:
    """Every valid instance of `n` MaskBench schemas, chosen by a fixed seed."""
    cases = list(maskbench.load(data / maskbench.FILE))
    chosen = random.Random(0).sample(cases, min(n, len(cases)))
    backend = backend_of(name, tokenizer)
    samples = []
    for case in track(chosen, description=f"{name}, {vocabulary}", transient=True):
        valid = case._replace(instances=tuple(instance for instance in case.instances if instance.valid))
        verdict = maskbench.judge(backend, tokenizer, valid)
        if verdict.error is None and verdict.mask_s:
            first = verdict.compile_s + verdict.mask_s[0]
            samples.append(_Sample(first, verdict.mask_s, verdict.tokens, verdict.forced_tokens))
    return _cost("MaskBench schemas", name, vocabulary, samples, refused=len(chosen) - len(samples))


def _walks(backend: Backend, pattern: str, tokenizer: Tokenizer, n: int) -> _Sample:
    begun = time.perf_counter()
    compiled = backend.compile(regex(pattern))
    mask: Mask = np.zeros(-(-tokenizer.vocab_size // 32), np.int32)
    mask_s: list[float] = []
    first = 0.0
    tokens = forced_tokens = 0
    for seed in range(n):
        rng = np.random.default_rng(seed)
        matcher = compiled.matcher()
        length = 0
        while length < MAX_TOKENS and not matcher.complete:
            if forced := matcher.forced():
                matcher.accept(forced)
                length += len(forced)
                forced_tokens += len(forced)
                continue
            started = time.perf_counter()
            matcher.fill(mask)
            mask_s.append(time.perf_counter() - started)
            first = first or time.perf_counter() - begun
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            matcher.accept([int(rng.choice(allowed))])
            length += 1
        tokens += length
    return _Sample(first, tuple(mask_s), tokens, forced_tokens)


def _cost(grammar: str, backend: str, vocabulary: str, samples: Sequence[_Sample], *, refused: int) -> MaskCost:
    masks = [seconds * 1e6 for sample in samples for seconds in sample.mask_s]
    first = [sample.first_mask_s * 1e3 for sample in samples]
    tokens = sum(sample.tokens for sample in samples)
    return MaskCost(
        grammar=grammar,
        backend=backend,
        vocabulary=vocabulary,
        compiled=len(samples),
        refused=refused,
        masks=len(masks),
        mask_us_p50=_percentile(masks, 50),
        mask_us_p99=_percentile(masks, 99),
        first_mask_ms_p50=_percentile(first, 50),
        first_mask_ms_p99=_percentile(first, 99),
        forced_share=sum(sample.forced_tokens for sample in samples) / tokens if tokens else None,
    )


def _percentile(values: Sequence[float], q: float) -> float | None:
    return float(np.percentile(values, q)) if values else None
