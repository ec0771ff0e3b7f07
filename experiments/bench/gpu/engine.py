"""Engine benchmarks on a 7B with random weights: steps beside what memory and the matrix units allow."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from engine.config import EngineConfig
from engine.executor.base import Batch
from engine.executor.cuda import CudaExecutor
from engine.executor.gpu_pool import bytes_per_token, kv_dtype_named
from engine.kernels.roofline import Work, floor_s
from engine.models.llama_gpu import LlamaGpu
from engine.request import Tokens
from experiments.bench.gpu import floors, ours, prompts
from experiments.bench.gpu.case import Case, Setup
from experiments.bench.gpu.figure import Figure, against_floor
from experiments.bench.gpu.profile import profiled
from experiments.bench.gpu.report import write_text

DECODE_TARGET, PREFILL_TARGET = 0.85, 0.65
"""Least shares of the floor: decoding at batch 1, a prompt of 8k."""
IDLE_TARGET, DETERMINISTIC_TARGET = 0.03, 1.10
"""At most: of a decode step with the overlapped loop; times what the default mode takes."""
NUMBER_BYTES = 2
"""Of a weight."""
OF_THE_EXECUTOR = ("kv_dtype", "deterministic", "cuda_graphs", "page_size", "pool_tokens", "max_running")
"""Settings that another executor is needed for."""
PROFILES = "profiles.md"


def cases(setup: Setup) -> Iterator[Case]:
    bench = Bench(setup)
    long, short, most = bench.long, bench.short, bench.most
    sizes = setup.pick(((1, short), (32, short), (most, short), (1, long), (8, long)), ((1, short), (most, long)))
    for batch, context in sizes:
        target = DECODE_TARGET if batch == 1 else None
        yield Case(f"decode, batch {batch} x {context}", partial(bench.decode, batch, context, target))
    for tokens in (setup.pick(1024, 10), long):
        yield Case(f"prefill of {tokens}", partial(bench.prefill, tokens, PREFILL_TARGET if tokens == 8192 else None))
    for batch in setup.pick((1, 32), (most,)):
        yield Case(f"loops, batch {batch}", partial(bench.loops, batch))
    for new_tokens in setup.pick((1, 32), (2,)):
        yield Case(f"MMLU, {new_tokens} new", partial(bench.mmlu, new_tokens))
    yield Case("branches of one prefix", bench.branches)
    yield Case("profiles", bench.profiles)
    yield Case("deterministic", bench.deterministic)
    kinds = ("int8", "fp8_e4m3") if setup.rehearsal or torch.cuda.get_device_capability() >= (8, 9) else ("int8",)
    for kind in kinds:
        yield Case(f"{kind} KV", partial(bench.quantised, kind))
    bench.drop()


class Bench:
    """One model, and one executor at a time over it."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.model: LlamaGpu = ours.make_model(setup)
        self.shape = self.model.config
        self.long, self.short = setup.pick((8192, 512), (14, 6))
        self.steps = setup.pick(40, 1)
        self.most = setup.pick(128, 2)
        self.config = EngineConfig(
            dtype="bfloat16",
            device=setup.device.type,
            page_size=1,
            max_batch_tokens=setup.pick(8192, 32),
            max_running=self.most,
            pool_tokens=setup.pick(84_000, 420),
            overlap=True,
        )
        self._executor: CudaExecutor | None = None
        self._made_for: tuple[object, ...] = ()

    def on(self, **changes: Any) -> tuple[CudaExecutor, EngineConfig]:
        """The benchmark's configuration with changes, and an executor for it: the one there is, or a new one."""
        config = replace(self.config, **changes)
        wanted = tuple(getattr(config, name) for name in OF_THE_EXECUTOR)
        if self._executor is None or wanted != self._made_for:
            self.drop()
            model = ours.make_model(self.setup, deterministic=True) if config.deterministic else self.model
            self._executor = ours.make_executor(model, config, self.setup.device)
            self._made_for = wanted
        return self._executor, config

    def drop(self) -> None:
        """Gives the executor's memory back."""
        self._executor = None
        gc.collect()
        if self.setup.device.type == "cuda":
            torch.cuda.empty_cache()

    def kv_bytes(self, config: EngineConfig) -> int:
        """Of one token, all layers."""
        return bytes_per_token(self.shape, kv_dtype_named(config.kv_dtype, self.model.dtype))

    def prompts(self, n: int, tokens: int, seed: int = 0) -> list[Tokens]:
        return prompts.random_prompts(n, tokens, self.shape.vocab_size, seed=seed)

    # ---- figures

    def decode(self, batch: int, context: int, target: float | None) -> Iterator[Figure]:
        executor, config = self.on()
        yield self._decode(executor, config, batch, context, f"decode step, batch {batch} x {context}", target)

    def _decode(
        self,
        executor: CudaExecutor,
        config: EngineConfig,
        batch: int,
        context: int,
        name: str,
        target: float | None = None,
    ) -> Figure:
        found = ours.decode(executor, config, self.prompts(batch, context), self.steps)
        work = floors.decode_step(
            self.shape,
            [round(found.context)] * batch,
            number_bytes=NUMBER_BYTES,
            kv_token_bytes=self.kv_bytes(config),
        )
        note = f"mean {found.mean_s * 1e3:.3f} ms; {batch / found.mean_s:,.0f} tokens a second"
        return against_floor(name, found.step_s, work, self.setup.ceilings, target=target, note=note)

    def prefill(self, tokens: int, target: float | None) -> Iterator[Figure]:
        """From the request to its first token."""
        executor, config = self.on()
        runs = [
            ours.serve(executor, config, self.prompts(1, tokens, seed), 1).seconds
            for seed in range(self.setup.pick(6, 2))
        ]
        work = floors.prefill(self.shape, tokens, number_bytes=NUMBER_BYTES, kv_token_bytes=self.kv_bytes(config))
        seconds = statistics.median(runs[1:])  # the first one compiles
        note = f"{work.operations / seconds / 1e12:.0f} TFLOP/s"
        yield against_floor(f"prefill of {tokens}", seconds, work, self.setup.ceilings, target=target, note=note)

    def loops(self, batch: int) -> Iterator[Figure]:
        """The overlapped loop beside the plain one, and how long the device waits for the host in each."""
        executor, config = self.on()
        given = self.prompts(batch, self.short)
        steps = {}
        for overlap in (True, False):
            looped = replace(config, overlap=overlap)
            steps[overlap] = ours.decode(executor, looped, given, self.steps).mean_s
        with ours.decoding(executor, config, given, self.setup.pick(10, 2)) as (engine, _):
            seen = profiled(engine.step, self.setup.pick(10, 2), self.setup.device)
        for overlap, name in ((True, "overlapped"), (False, "plain")):
            yield Figure(
                name=f"device idle in a decode step, {name} loop, batch {batch} x {self.short}",
                value=max(0.0, 1 - seen.own_s / steps[overlap]),
                unit="share",
                target=IDLE_TARGET if overlap else None,
                aim="at most",
                note=f"{seen.own_s * 1e3:.3f} ms of {steps[overlap] * 1e3:.3f} ms, gaps of less than 10 µs between "
                f"kernels counted as work; without them {1 - seen.busy_s / steps[overlap]:.1%} idle",
            )
        yield Figure(name=f"overlapped against plain loop, batch {batch}", value=steps[False] / steps[True], unit="x")

    def mmlu(self, new_tokens: int) -> Iterator[Figure]:
        given, what = self.mmlu_prompts()
        executor, config = self.on()
        served = {}
        ours.serve(executor, config, given, new_tokens)  # compiles what these shapes need
        for cache in ("radix", "none"):
            cached = replace(config, cache=cache)
            runs = [ours.serve(executor, cached, given, new_tokens) for _ in range(self.setup.pick(3, 1))]
            served[cache] = sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]
            found = served[cache]
            yield Figure(
                name=f"MMLU, {new_tokens} new, cache {'on' if cache == 'radix' else 'off'}",
                value=found.seconds,
                floor=self.mmlu_floor(given, found.computed_tokens, new_tokens),
                note=f"{what}, {found.computed_tokens:,} computed, {len(given) / found.seconds:.0f} requests a second",
            )
        yield Figure(
            name=f"MMLU, {new_tokens} new, times faster with the cache",
            value=served["none"].seconds / served["radix"].seconds,
            unit="x",
        )

    def mmlu_prompts(self) -> tuple[list[Tokens], str]:
        if self.setup.rehearsal:
            made = prompts.mmlu_like(self.shape.vocab_size, 0, subjects=1, questions=2, scale=0.02)
            return made, "a handful of made-up prompts"
        return prompts.mmlu(self.shape.vocab_size)

    def mmlu_floor(self, given: Sequence[Tokens], computed: int, new_tokens: int) -> float:
        """The computed prompt tokens (their attention left out), then steps that decode all requests at once."""
        shape, n = self.shape, len(given)
        work = Work(0, 2 * computed * shape.n_layer_parameters + 2 * n * shape.hidden_size * shape.vocab_size)
        step = floors.decode_step(
            shape, [len(one) for one in given], number_bytes=NUMBER_BYTES, kv_token_bytes=self.kv_bytes(self.config)
        )
        return floor_s(work, self.setup.ceilings) + (new_tokens - 1) * floor_s(step, self.setup.ceilings)

    def branches(self) -> Iterator[Figure]:
        """Decode steps of requests that share a prefix: read once, and read by each."""
        executor, config = self.on()
        n, prefix, own = self.setup.pick((64, 4096, 32), (2, 8, 2))
        given = prompts.branches(n, prefix, own, self.shape.vocab_size, seed=3)
        kv = self.kv_bytes(config)
        found = ours.decode(executor, config, given, self.steps)
        whole = floors.decode_step(self.shape, [round(found.context)] * n, number_bytes=NUMBER_BYTES, kv_token_bytes=kv)
        work = Work(whole.bytes - (n - 1) * prefix * kv, whole.operations)
        name = f"decode step, {n} branches of {prefix} + {own}"
        yield against_floor(f"{name}, prefix read once", found.step_s, work, self.setup.ceilings)
        alone = ours.decode(Ungrouped(executor), config, given, self.steps)  # type: ignore[arg-type]
        yield against_floor(f"{name}, prefix read by each", alone.step_s, work, self.setup.ceilings)
        yield Figure(name=f"{name}, times faster", value=alone.step_s / found.step_s, unit="x")

    def deterministic(self) -> Iterator[Figure]:
        batch = min(32, self.most)
        given, prefill = self.prompts(batch, self.short), self.prompts(batch, self.short, seed=1)
        steps, prompt_s = {}, {}
        for on in (False, True):
            executor, config = self.on(deterministic=on)
            steps[on] = ours.decode(executor, config, given, self.steps).step_s
            prompt_s[on] = min(ours.serve(executor, config, prefill, 1).seconds for _ in range(self.setup.pick(3, 1)))
            del executor  # before the next one takes its memory
        for what, times in ((f"decode step, batch {batch} x {self.short}", steps), ("their prompts", prompt_s)):
            yield Figure(
                name=f"deterministic mode, {what}",
                value=times[True] / times[False],
                unit="x",
                target=DETERMINISTIC_TARGET,
                aim="at most",
                note=f"{times[True] * 1e3:.3f} ms against {times[False] * 1e3:.3f} ms",
            )

    def quantised(self, kind: str) -> Iterator[Figure]:
        batch = min(8, self.most)
        executor, config = self.on(kv_dtype=kind)
        yield self._decode(executor, config, batch, self.long, f"decode step, batch {batch} x {self.long}, {kind} KV")

    def profiles(self) -> Iterable[Figure]:
        """Written beside the results."""
        executor, config = self.on()
        parts = ["# Where the device's time goes", ""]
        for batch, context in self.setup.pick(((1, self.short), (32, self.short), (8, self.long)), ((1, self.short),)):
            steps = self.setup.pick(8, 1)
            with ours.decoding(executor, config, self.prompts(batch, context), steps) as (engine, _):
                seen = profiled(engine.step, steps, self.setup.device)
            parts.append(seen.markdown(f"Decode step, batch {batch} x {context}"))
        seeds = iter(range(100, 200))

        def prompt() -> None:
            ours.serve(executor, config, self.prompts(1, self.long, next(seeds)), 1)

        prompt()
        parts.append(profiled(prompt, self.setup.pick(2, 1), self.setup.device).markdown(f"Prefill of {self.long}"))
        write_text(self.setup.folder / PROFILES, "\n".join(parts))
        return ()


class Ungrouped:
    """An executor that isn't told which rows share a prefix."""

    def __init__(self, executor: CudaExecutor) -> None:
        self._executor = executor

    def launch(self, batch: Batch) -> Any:
        return self._executor.launch(batch._replace(prefix_groups=()))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)
