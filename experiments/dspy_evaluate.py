"""DSPy's own loop on our engine: the program of `workload=dspy_rag`, evaluated by `dspy.Evaluate` with threads.

    python -m experiments.dspy_evaluate policy=lru model=tiny parallel=32 workload.n_questions=20

The overrides are those of run.py; `parallel` is the number of threads (32). Each thread retrieves, asks and waits, as
in the paper; what is under way at a time is one batch of the engine. Answers are the model's own: with random weights
they mean nothing and no score is told. `run.py workload=dspy_rag` measures the same calls under every load generator.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

import conf
from engine.config import ConfigError
from engine.request import Request
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
    if rag is None:
        raise ConfigError("DSPy's loop needs a program: use workload.kind=live")
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
            with dspy.context(lm=lm, rm=rag.search, adapter=rag.adapter):
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


def config_of(overrides: Sequence[str]) -> RunConfig:
    """Raises ConfigError for another workload or system."""
    with initialize_config_dir(config_dir=str(Path(next(iter(conf.__path__))).resolve()), version_base="1.3"):
        composed = compose("config", ["workload=dspy_rag", *overrides])
    settings: Any = OmegaConf.to_container(composed, resolve=True)
    config = RunConfig.parse(settings)
    if config.workload != "dspy_rag" or config.system["name"] != "radixlab":
        raise ConfigError(
            f"workload={config.workload} on system={config.system['name']}: only dspy_rag on radixlab can be evaluated"
        )
    if config.rate is not None:
        raise ConfigError("rate isn't served: threads ask as fast as they are answered; give parallel=THREADS")
    return config


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table; `out=FILE` writes JSON, too."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    outs = [text.partition("=")[2] for text in given if text.startswith("out=")]
    config = config_of([text for text in given if not text.startswith("out=")])
    system = make_system(config)
    assert isinstance(system, RadixlabSystem)
    workload: Any = load_workload(config.workload, config.workload_args)
    if system.count_tokens is not None:
        workload.count_tokens = system.count_tokens
    workload.choose_outputs("free", system.random_weights)
    workload.load()
    found = evaluate(system.engine, workload, config.parallel or THREADS)
    if system.random_weights:
        found = found._replace(exact_match=None)
    table = Table(title="dspy.Evaluate on our engine", show_header=False)
    for name, value in found._asdict().items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else "–" if value is None else f"{value}")
    Console().print(table)
    for path in outs:
        Path(path).write_text(json.dumps({"overrides": given, **found._asdict()}, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ConfigError as error:
        sys.exit(f"{error}")
