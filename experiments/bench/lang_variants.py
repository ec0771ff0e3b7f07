"""Ways of running the same programs on the engine: one call after the other, side by side, as a graph, with passes."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import lang as sgl
from engine.engine import Engine
from experiments.bench.lang_programs import PROGRAMS, READ, TASKS, asked_first
from experiments.statistics import repeat_ratio
from lang import passes
from lang.backends.base import Call, Tags
from lang.backends.engine import EngineBackend
from lang.choices import ChoicesMethod
from lang.passes.base import Pass
from lang.prompt import Prompt
from lang.sampling import Sampling

SEQUENTIAL = "eager, one call at a time"
ALL_EXACT = "compiled, all exact passes"


class Counting(EngineBackend):
    """Knows the tokens that it had the engine compute."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.calls = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0

    def generate(self, name: str | None, prompt: Prompt, sampling: Sampling, tags: Tags) -> Call:
        self.calls += 1
        return super().generate(name, prompt, sampling, tags)

    def score(
        self, name: str | None, prompt: Prompt, choices: Sequence[str], method: ChoicesMethod, tags: Tags
    ) -> Call:
        self.calls += 1
        return super().score(name, prompt, choices, method, tags)

    def step(self) -> list[Call]:
        ended = super().step()
        for call in ended:
            self.prompt_tokens += call.meta["prompt_tokens"]
            self.cached_tokens += call.meta["cached_tokens"]
            self.output_tokens += call.meta["completion_tokens"]
        return ended


class Work(NamedTuple):
    """What one run of all programs had the engine do."""

    calls: int
    steps: int
    prompt_tokens: int
    """Of calls: a select's for each choice, without those that only cache a prefix."""
    cached_tokens: int
    """Of these, found in the cache."""
    output_tokens: int
    computed_tokens: int
    """Tokens that went through the model: of prompts, choices and outputs, prefixes that were cached ahead too."""


class Run(NamedTuple):
    seconds: float
    work: Work
    said: list[tuple[Any, ...]]
    """What each program wrote: its text and its variables."""


class Variant(NamedTuple):
    name: str
    program: sgl.Program
    parallel: bool
    reports: tuple[str, ...] = ()
    may_differ: bool = False
    """Prompts, or how a choice is made, are others."""


def exact_passes() -> dict[str, Pass]:
    """Those that leave greedy outputs as they are."""
    return {
        "common calls": passes.common_calls(),
        "dead code": passes.dead_code(),
        "forced text": passes.forced_text(),
        "one call for siblings": passes.one_call_for_siblings(),
        "prefetch": passes.prefetch(),
    }


def variants_of(program: sgl.Program) -> list[Variant]:
    found = [Variant(SEQUENTIAL, program, False), Variant("eager", program, True), _compiled("compiled", program, ())]
    found += [_compiled(f"compiled, {name}", program, (one,)) for name, one in exact_passes().items()]
    found.append(_compiled(ALL_EXACT, program, tuple(exact_passes().values())))
    # a choice may merge with the prompt's last token when it is scored, and can't when it is decoded
    return [*found, _compiled("compiled, select by decoding", program, (passes.select_by_decoding(),), True)]


def _compiled(name: str, program: sgl.Program, done: Sequence[Pass], may_differ: bool = False) -> Variant:
    compiled = program.compile(passes=done)
    reports = [report for each in compiled.reports.values() for report in each]
    may_differ = may_differ or any(report.changed_prompts for report in reports)
    return Variant(name, compiled, True, tuple(map(str, reports)), may_differ)


def compare(engine: Engine, model: str, title: str, *, programs: int, at_once: int, rounds: int) -> dict[str, Any]:
    """Every variant of a program in turns, each run from an empty cache.

    Raises RuntimeError for other outputs; in bf16 they are counted, since there sums depend on the batch.
    """
    variants = variants_of(PROGRAMS[title])
    return _measured(engine, model, title, variants, READ[title], programs, at_once, rounds)


def movement(engine: Engine, model: str, *, programs: int, rounds: int) -> dict[str, Any]:
    """A batch whose instructions may move to the front. Their answers may be others: the prompt is another."""
    variants = [
        Variant("eager", asked_first, True),
        _compiled("compiled", asked_first, ()),
        _compiled("compiled, code movement", asked_first, (passes.code_movement(),)),
    ]
    return _measured(engine, model, "question before instructions", variants, ("answer",), programs, programs, rounds)


def _measured(
    engine: Engine,
    model: str,
    title: str,
    variants: Sequence[Variant],
    names: Sequence[str],
    programs: int,
    at_once: int,
    rounds: int,
) -> dict[str, Any]:
    tasks = [f"{TASKS[i % len(TASKS)]} ({i})" for i in range(programs)]
    runs: dict[str, list[Run]] = {variant.name: [] for variant in variants}
    for i in range(rounds + 1):  # the first doesn't count
        shift = i % len(variants)
        for variant in (*variants[shift:], *variants[:shift]):
            runs[variant.name].append(_run(engine, variant, tasks, names, at_once))
    base = runs[variants[0].name]
    rows = []
    for variant in variants:
        own = runs[variant.name]
        same = min(sum(a == b for a, b in zip(run.said, base[0].said, strict=True)) for run in own)
        if same < programs and not variant.may_differ and engine.config.dtype != "bfloat16":
            raise RuntimeError(f"{title}, {variant.name}: the outputs aren't those of {variants[0].name}")
        ratio = repeat_ratio([run.seconds for run in own[1:]], [run.seconds for run in base[1:]])
        rows.append(
            {
                "variant": variant.name,
                "seconds": [run.seconds for run in own[1:]],
                "programs_per_s": programs / statistics.median(run.seconds for run in own[1:]),
                "speedup": ratio.record(),
                "programs_with_same_outputs": same,
                **own[0].work._asdict(),
                "reports": variant.reports,
            }
        )
    return {"model": model, "program": title, "programs": programs, "at_once": at_once, "variants": rows}


def _run(engine: Engine, variant: Variant, tasks: Sequence[str], names: Sequence[str], at_once: int) -> Run:
    engine.flush_cache()
    engine.reset_metrics()
    gc.collect()
    backend = Counting(engine)
    begun = time.perf_counter()
    states = variant.program.run_batch(
        [(task,) for task in tasks], backend=backend, num_threads=at_once, parallel=variant.parallel, temperature=0
    )
    seconds = time.perf_counter() - begun
    said = [(state.text(), *(state[name] for name in names)) for state in states]
    steps = engine.metrics.steps
    computed = sum(step.n_prefill + step.n_decode for step in steps)
    counts = (backend.prompt_tokens, backend.cached_tokens, backend.output_tokens)
    return Run(seconds, Work(backend.calls, len(steps), *counts, computed), said)
