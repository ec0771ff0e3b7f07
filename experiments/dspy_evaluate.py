"""DSPy's own loop on our engine: the program of `workload=dspy_rag`, evaluated by `dspy.Evaluate` with threads.

    python -m experiments.dspy_evaluate policy=lru model=tiny parallel=32 workload.n_questions=20

The overrides are those of run.py; `parallel` is the number of threads (32). Each thread retrieves, asks and waits, as
in the paper; what is under way at a time is one batch of the engine. Answers are the model's own: with random weights
they mean nothing and no score is told. `run.py workload=dspy_rag` measures the same calls under every load generator.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.table import Table

from engine.config import ConfigError
from engine.policies.base import PolicyError
from engine.request import Request
from experiments.arguments import composed, explain, is_composition_error
from experiments.bench.radix import write_json
from experiments.config import RunConfig
from experiments.infinite_cache import infinite_hit_rate
from experiments.systems.base import make_system
from experiments.systems.radixlab import RadixlabSystem
from workloads.registry import load_workload

if TYPE_CHECKING:
    from engine.engine import Engine
    from workloads.dspy_rag import DSPyRAG

THREADS = 32


class Figures(NamedTuple):
    questions: int
    threads: int
    retriever: str
    data: str
    seconds: float
    questions_per_s: float
    requests: int
    prompt_tokens: int
    hit_rate: float
    infinite_hit_rate: float
    """Of a cache that never forgets, the same requests in the same order."""
    in_form: int
    """Questions whose answer could be read."""
    exact_match: float | None
    """None with random weights."""


def evaluate(engine: Engine, workload: DSPyRAG, threads: int) -> Figures:
    """workload: loaded, of kind=live. The engine is given back when it returns."""
    import dspy  # type: ignore[import-untyped]

    from lang.backends.dspy_engine import DSPyEngine
    from workloads.dspy_rag.pipeline import exact_match, example

    rag, questions = workload.rag, workload.asked()
    assert rag is not None, "kind=recorded has no program"
    finished: list[Request] = []
    engine.on_finish.append(finished.append)
    try:
        with DSPyEngine(engine, model_name="evaluated") as served:
            lm = dspy.LM(
                "radixlab/evaluated",
                engine=served,
                cache=False,
                temperature=workload.temperature,
                max_tokens=workload.max_tokens,
                num_retries=0,
            )
            run = dspy.Evaluate(
                devset=[example(question) for question in questions],
                metric=exact_match,
                num_threads=threads,
                max_errors=len(questions) + 1,
                display_progress=sys.stderr.isatty(),
            )

            def search(query: str, k: int) -> Any:
                time.sleep(workload.retrieval_seconds)
                return rag.search(query, k=k)

            with dspy.context(lm=lm, rm=search, adapter=rag.adapter):
                started = time.perf_counter()
                result = run(rag.program)
                seconds = time.perf_counter() - started
    finally:
        engine.on_finish.remove(finished.append)
    tokens = sum(request.prompt_tokens for request in finished)
    return Figures(
        questions=len(questions),
        threads=threads,
        retriever=workload.retriever,
        data=workload.data.origin,
        seconds=seconds,
        questions_per_s=len(questions) / seconds,
        requests=len(finished),
        prompt_tokens=tokens,
        hit_rate=sum(request.n_cached for request in finished) / tokens if tokens else 0.0,
        infinite_hit_rate=infinite_hit_rate(finished),
        in_form=sum(bool(said.get("answer")) for _, said, _ in result.results),
        exact_match=result.score / 100,
    )


def set_up(overrides: Sequence[str]) -> tuple[RunConfig, RadixlabSystem, DSPyRAG]:
    """Raises ConfigError for what can't be had here, and what reading data and making the engine raise."""
    from workloads.dspy_rag import DSPyRAG

    config = composed(["workload=dspy_rag", *overrides])
    for name, given, served in (
        ("workload", config.workload, "dspy_rag"),
        ("system", config.system["name"], "radixlab"),
        ("rate", config.rate, None),
        ("repeats", config.repeats, 1),
        ("cells", config.cells, ()),
    ):
        if given != served:
            raise ConfigError(f"{name}={given!r} isn't served: DSPy's loop is run with {name}={served!r} only")
    workload = load_workload(config.workload, config.workload_args)
    assert isinstance(workload, DSPyRAG)
    if workload.kind != "live" or workload.asked_outputs not in ("auto", "free"):
        raise ConfigError(
            f"workload.kind={workload.kind}, workload.outputs={workload.asked_outputs}: DSPy's loop needs kind=live "
            "and outputs=free (or auto), its answers are the model's own"
        )
    system = make_system(config)
    assert isinstance(system, RadixlabSystem)
    if system.count_tokens is not None:
        workload.count_tokens = system.count_tokens
    workload.choose_outputs("free", system.random_weights)
    workload.load()
    return config, system, workload


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table; `out=FILE` writes JSON, too. 1, with a line that says why, for what can't be set up."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    outs = [text.partition("=")[2] for text in given if text.startswith("out=")]
    overrides = [text for text in given if not text.startswith("out=")]
    try:
        config, system, workload = set_up(overrides)
    except Exception as error:
        if is_composition_error(error):
            print(f"error: {explain(error, overrides)}", file=sys.stderr)
        elif isinstance(error, ValueError | TypeError | LookupError | OSError | PolicyError):
            print(f"error: {error}", file=sys.stderr)
        else:
            raise
        return 1
    found = evaluate(system.engine, workload, config.parallel or THREADS)
    if system.random_weights:
        found = found._replace(exact_match=None)
    table = Table(title="dspy.Evaluate on our engine", show_header=False)
    for name, value in found._asdict().items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else "–" if value is None else f"{value}")
    Console().print(table)
    for path in outs:
        write_json(Path(path), {"overrides": overrides, **found._asdict()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
