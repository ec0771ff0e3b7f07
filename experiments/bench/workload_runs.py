"""One workload under several policies: the same programs, policies in turn, each run from an empty cache."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple

from engine.request import Request
from experiments.arguments import composed
from experiments.config import RunConfig
from experiments.infinite_cache import infinite_hits
from experiments.load import Closed, play
from experiments.metrics import program_table, request_table
from experiments.statistics import Interval, repeat_ratio
from experiments.systems.base import System, make_system
from experiments.systems.radixlab import RadixlabSystem
from workloads.base import Job, Workload
from workloads.registry import load_workload

POLICIES = ("lru", "fcfs", "none")
"""The cache with the schedule that is aware of it; the cache with first come first served; no cache."""


class Case(NamedTuple):
    """A workload as it is measured."""

    title: str
    overrides: tuple[str, ...]
    """Of run.py; `workload=...` first."""
    programs: int
    """At most so many of its programs, the first."""
    alone: int
    """So many of them for the latency with one program at a time."""
    parallel: int = 16


class Figures(NamedTuple):
    """Of one run."""

    seconds: float
    programs_per_s: float
    latency_s: float
    """Mean of a program."""
    ttft_s: float
    """Mean of the calls that generate; NaN where none does."""
    hit_rate: float
    infinite: float
    """Hit rate of a cache that never forgets, requests in the order of their arrival."""
    prompt_tokens: int
    output_tokens: int
    calls: int
    failed: int
    error: str
    """The first, where programs failed."""


class Systems:
    """One of each kind, made when first asked for: the weights are drawn once."""

    def __init__(self, settings: Sequence[str]) -> None:
        self._settings = tuple(settings)
        self._made: dict[str, System] = {}

    def config(self, overrides: Sequence[str]) -> RunConfig:
        return composed([*overrides, *self._settings])

    def get(self, config: RunConfig) -> System:
        key = repr((config.model, config.policy, config.engine))
        if key not in self._made:
            self._made[key] = make_system(config)
        return self._made[key]


def load(config: RunConfig, system: System) -> Workload:
    workload = load_workload(config.workload, config.workload_args)
    if system.count_tokens is not None:
        workload.count_tokens = system.count_tokens
    workload.choose_outputs(workload.asked_outputs, system.random_weights)
    workload.load()
    return workload


def run(system: System, jobs: Sequence[Job], parallel: int) -> Figures:
    """From an empty cache, with `parallel` programs going."""
    system.reset()
    gc.collect()
    finished: list[Request] = []
    engine = system.engine if isinstance(system, RadixlabSystem) else None
    if engine is not None:
        engine.on_finish.append(finished.append)
    try:
        played = play(jobs, Closed(parallel), system.runner(), system.clock)
    finally:
        if engine is not None:
            engine.on_finish.remove(finished.append)
    requests = request_table(played.runs, played.started_at, 0)
    programs = program_table(played.runs, played.started_at, 0)
    seconds = played.finished_at - played.started_at
    own: set[int] = {r.id for one in played.runs for call in one.calls for r in call.requests}
    admitted = requests[requests["admitted_s"].notna()]
    failed = int(programs["error"].notna().sum())
    return Figures(
        seconds=seconds,
        programs_per_s=(len(programs) - failed) / seconds,
        latency_s=float(programs["program_latency_s"].mean()),
        ttft_s=float(requests["ttft_s"].mean()),
        hit_rate=float(admitted["cached_tokens"].sum() / admitted["input_tokens"].sum()),
        infinite=best_hit_rate(finished, own),
        prompt_tokens=int(admitted["input_tokens"].sum()),
        output_tokens=int(requests["output_tokens"].sum()),
        calls=len(requests),
        failed=failed,
        error=next((str(error) for error in programs["error"] if isinstance(error, str)), ""),
    )


def best_hit_rate(finished: Sequence[Request], own: Set[int]) -> float:
    """Of a cache that never forgets, over the programs' own calls; what the language had computed ahead of a fork is
    known to it, too, but is no call. Requests in the order in which they came."""
    ordered = sorted(finished, key=lambda request: request.id)
    hits = infinite_hits(ordered)
    of_calls = [(n, request.prompt_tokens) for n, request in zip(hits, ordered, strict=True) if request.id in own]
    tokens = sum(prompt for _, prompt in of_calls)
    return sum(n for n, _ in of_calls) / tokens if tokens else 0.0


def measure(case: Case, systems: Systems, rounds: int, policies: Sequence[str] = POLICIES) -> dict[str, Any]:
    """Throughput of all programs, then latency of some with one at a time. Policies in turn, in a new order a round."""
    configs = {policy: systems.config([*case.overrides, f"policy={policy}"]) for policy in policies}
    made = {policy: systems.get(config) for policy, config in configs.items()}
    workload = load(configs[policies[0]], made[policies[0]])
    jobs = workload.jobs()[: case.programs]
    many: dict[str, list[Figures]] = {policy: [] for policy in policies}
    alone: dict[str, list[Figures]] = {policy: [] for policy in policies}
    for policy in policies:  # code for every batch size is made once
        run(made[policy], (workload.warmup() or jobs)[:2], 2)
    for turn in range(rounds):
        order = list(policies)
        random.Random(f"{turn}/{case.title}").shuffle(order)
        for policy in order:
            many[policy].append(run(made[policy], jobs, case.parallel))
            if case.alone:
                alone[policy].append(run(made[policy], jobs[: case.alone], 1))
    return {
        "title": case.title,
        "overrides": list(case.overrides),
        "model": configs[policies[0]].model["name"],
        "outputs": workload.outputs,
        "data": workload.data._asdict(),
        "programs": len(jobs),
        "parallel": case.parallel,
        "alone": min(case.alone, len(jobs)),
        "rounds": rounds,
        "throughput": {policy: [one._asdict() for one in found] for policy, found in many.items()},
        "one_at_a_time": {policy: [one._asdict() for one in found] for policy, found in alone.items()},
        "ratios": _ratios(many, alone),
    }


def _ratios(many: Mapping[str, list[Figures]], alone: Mapping[str, list[Figures]]) -> dict[str, Any]:
    """Of the first policy over each other one; latencies as other / first, so that above 1 the first is better."""
    first, *others = many
    found: dict[str, Any] = {}
    for other in others:
        base, ours = ([one.programs_per_s for one in many[policy]] for policy in (other, first))
        found[other] = {"programs_per_s": _plain(repeat_ratio(base, ours))}
        for name in ("latency_s", "ttft_s"):
            if alone[first]:
                base, theirs = ([getattr(one, name) for one in alone[policy]] for policy in (first, other))
                found[other][name] = _plain(repeat_ratio(base, theirs))
    return found


def _plain(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
