"""What the language costs: programs of nothing but gens against the engine called by hand for the same outputs."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lang as sgl
from engine.engine import Engine
from engine.request import SamplingParams
from experiments.statistics import repeat_ratio
from lang.backends.engine import EngineBackend

LINKS = ("", "\nSecond, ", "\nThird, ")
"""What stands before each gen of a program, after the outputs before it."""


class Run(NamedTuple):
    seconds: float
    cpu_seconds: float
    """Of the whole process."""
    steps: int
    """Of the engine."""
    texts: list[str]
    """What each program wrote."""


@sgl.function
def one_gen(s: Any, prompt: Any) -> None:
    s += prompt + sgl.gen("first")


@sgl.function
def three_gens(s: Any, prompt: Any) -> None:
    s += prompt + sgl.gen("first")
    s += LINKS[1] + sgl.gen("second")
    s += LINKS[2] + sgl.gen("third")


PROGRAMS = {1: one_gen, 3: three_gens}


def direct(engine: Engine, prompts: Sequence[str], gens: int, sampling: dict[str, Any]) -> list[str]:
    """By hand, as tightly as one can: the next gen of a program is queued when the one before it has finished."""
    params = SamplingParams(**sampling)
    texts = list(prompts)
    under_way: dict[int, tuple[int, int]] = {}
    for i, prompt in enumerate(prompts):
        (request,) = engine.add(prompt, params)
        under_way[request.id] = (i, 1)
    while engine.has_work:
        for request in engine.step():
            if request.error is not None:
                raise RuntimeError(f"a request of the benchmark failed: {request.error}")
            i, done = under_way.pop(request.id)
            texts[i] += request.text
            if done < gens:
                texts[i] += LINKS[done]
                (request,) = engine.add(texts[i], params)
                under_way[request.id] = (i, done + 1)
    return texts


def overhead(engine: Engine, model: str, *, programs: int, gens: int, new_tokens: int, rounds: int) -> dict[str, Any]:
    """Direct calls, eager and compiled programs in turns, and direct calls once more: what noise alone gives.

    Each run begins with an empty cache. Raises RuntimeError when they don't write the same in equally many steps.
    """
    prompts = [f"{i} is the number of a program. Tell me first, " for i in range(programs)]
    sampling: dict[str, Any] = {"max_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True}
    backend, program = EngineBackend(engine), PROGRAMS[gens]
    compiled = program.compile()

    def of(program: sgl.Program) -> list[str]:
        states = program.run_batch([(prompt,) for prompt in prompts], backend=backend, **sampling)
        return [state.text() for state in states]

    systems: dict[str, Callable[[], list[str]]] = {
        "direct": lambda: direct(engine, prompts, gens, sampling),
        "eager": lambda: of(program),
        "compiled": lambda: of(compiled),
        "direct again": lambda: direct(engine, prompts, gens, sampling),
    }
    runs: dict[str, list[Run]] = {name: [] for name in systems}
    names = list(systems)
    for i in range(rounds + 1):  # the first doesn't count: memory is touched and kernels are made
        for name in names[i % len(names) :] + names[: i % len(names)]:
            runs[name].append(timed(engine, systems[name]))
    for name, own in runs.items():
        for run in own:
            if (run.texts, run.steps) != (runs["direct"][0].texts, runs["direct"][0].steps):
                raise RuntimeError(f"{name} didn't do the same work as direct calls")
    counted = {name: own[1:] for name, own in runs.items()}
    return {
        "model": model,
        "programs": programs,
        "gens": gens,
        "new_tokens": new_tokens,
        "steps": runs["direct"][0].steps,
        "systems": {name: _row(own, counted["direct"], programs) for name, own in counted.items()},
    }


def timed(engine: Engine, work: Callable[[], list[str]]) -> Run:
    engine.flush_cache()
    engine.reset_metrics()
    gc.collect()
    begun, cpu = time.perf_counter(), time.process_time()
    texts = work()
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    return Run(seconds, cpu_seconds, len(engine.metrics.steps), texts)


def _row(own: Sequence[Run], base: Sequence[Run], programs: int) -> dict[str, Any]:
    extra = [(run.cpu_seconds - other.cpu_seconds) / programs for run, other in zip(own, base, strict=True)]
    return {
        "seconds": [run.seconds for run in own],
        "cpu_seconds": [run.cpu_seconds for run in own],
        "seconds_a_program": sorted(run.seconds for run in own)[len(own) // 2] / programs,
        "extra_cpu_seconds_a_program": sorted(extra)[len(extra) // 2],
        "times_direct": repeat_ratio([run.seconds for run in base], [run.seconds for run in own]).record(),
        "times_direct_by_cpu_time": repeat_ratio(
            [run.cpu_seconds for run in base], [run.cpu_seconds for run in own]
        ).record(),
    }
