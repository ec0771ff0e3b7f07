"""The HTTP server against the engine alone: what it costs, how many streams it bears, what it leaves in memory.

    python -m experiments.bench.server [--data DIR] [--threads N] [--rounds 5] [--only overhead streams memory]

overhead: 5-shot MMLU prompts as text on `llama-110m` in bf16, 64 in flight, 32 new tokens, greedy, each run from an
    empty cache. Direct (one thread calls the engine), HTTP, and HTTP with every token streamed take turns within each
    round; the ratios are those of paired rounds.
streams: 1,000 requests to `tiny` at once, each streamed.
memory: the server's resident memory, its garbage collected and free memory given back, after 2,000 requests (and a
    warm-up with batches of many sizes) and after 20,000, one in ten broken off; and the pages that neither the cache
    nor the free list has in the end.

Server and load generator are processes of their own. On a machine of few cores they take processor time from one
another and from the engine, so CPU seconds stand beside the wall clock: the client's are no cost of the server's.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from engine.engine import Engine
from engine.make import make_engine
from engine.request import SamplingParams
from engine.server.launch import Settings
from experiments.bench.http_load import Load
from experiments.bench.peer_hf import write_json
from experiments.bench.radix_prompts import data_folder, mmlu_texts, tinyllama_file
from experiments.bench.served_process import ServedProcess
from experiments.environment import environment
from experiments.statistics import percentile, repeat_ratio

TARGET_OVERHEAD = 0.05
TARGET_GROWTH = 0.05
AT_ONCE = 64
CUT_SHARE = 0.1
FEW, MANY = 2_000, 20_000
WARM_UP = (1, 4, 16, 64, 128, 256)
"""In flight before memory is measured: oneDNN keeps code for each size of a batch (`engine/kernels/cpu/linear.py`)."""

Say = Callable[[str], None]


class Run(NamedTuple):
    """One pass over the prompts. Latencies are seconds from sending to the whole answer."""

    seconds: float
    cpu_seconds: float
    """Of the process with the engine."""
    client_cpu_seconds: float
    latencies: list[float]
    output_tokens: int


def body(prompt: str, new_tokens: int, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": new_tokens, "temperature": 0.0, "ignore_eos": True, **more}


STREAMED: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


# ---- overhead


def direct(engine: Engine, prompts: Sequence[str], new_tokens: int) -> Run:
    """The engine alone, with the same number in flight. Raises RuntimeError when a request fails."""
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    engine.flush_cache()
    todo = deque(prompts)
    finished = []
    begun, cpu = time.perf_counter(), time.process_time()
    for _ in range(min(AT_ONCE, len(todo))):
        engine.add(todo.popleft(), params)
    while engine.has_work:
        for request in engine.step():
            finished.append(request)
            if todo:
                engine.add(todo.popleft(), params)
    seconds, cpu_seconds = time.perf_counter() - begun, time.process_time() - cpu
    failed = [request.error for request in finished if request.error is not None]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed, the first with: {failed[0]}")
    latencies = [request.finished_at - request.arrival for request in finished if request.finished_at is not None]
    return Run(seconds, cpu_seconds, 0.0, latencies, sum(request.output_tokens for request in finished))


def over_http(server: ServedProcess, bodies: Sequence[dict[str, Any]], clients: int = AT_ONCE) -> Run:
    server.flush()
    before = server.used()
    load = server.load(bodies, clients)
    cpu_seconds = server.used().cpu_seconds - before.cpu_seconds
    latencies = [exchange.done - exchange.sent for exchange in load.exchanges]
    return Run(load.seconds, cpu_seconds, load.cpu_seconds, latencies, _output_tokens(load))


def _output_tokens(load: Load) -> int:
    return sum(exchange.output_tokens for exchange in load.exchanges)


def overhead(options: argparse.Namespace, data: Path, say: Say) -> dict[str, Any]:
    """Direct, HTTP and streamed HTTP in turns. Raises RuntimeError when they don't do the same work."""
    texts = mmlu_texts(data)
    prompts = (texts * (options.requests // len(texts) + 1))[: options.requests]
    settings = [
        f"model={options.model}",
        "model.dtype=bfloat16",
        f"model.tokenizer={tinyllama_file(data)}",
        "engine.device=cpu",
    ]
    engine = make_engine(Settings(settings).engine, keep_history=False)
    with ServedProcess([*settings, "served_name=model"], options.threads) as server:
        plain = [body(prompt, options.new_tokens, model="model") for prompt in prompts]
        systems: dict[str, Callable[[], Run]] = {
            "direct": lambda: direct(engine, prompts, options.new_tokens),
            "http": lambda: over_http(server, plain),
            "http, streamed": lambda: over_http(server, [one | STREAMED for one in plain]),
        }
        for system in systems.values():  # memory is touched and kernels are made for the shapes to come
            system()
        runs: dict[str, list[Run]] = {name: [] for name in systems}
        names = list(systems)
        for i in range(options.rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                run = systems[name]()
                runs[name].append(run)
                say(f"round {i + 1}, {name}: {run.seconds:.2f} s, CPU {run.cpu_seconds:.2f} s")
    done = {run.output_tokens for of_one in runs.values() for run in of_one}
    if len(done) != 1:
        raise RuntimeError(f"not all runs made equally many tokens: {sorted(done)}")
    rows = {name: _row(of_one, runs["direct"], len(prompts)) for name, of_one in runs.items()}
    return {"requests": len(prompts), "new_tokens": options.new_tokens, "in_flight": AT_ONCE, "systems": rows}


def _row(own: Sequence[Run], base: Sequence[Run], n_requests: int) -> dict[str, Any]:
    ratio = repeat_ratio([run.seconds for run in base], [run.seconds for run in own])
    cpu = repeat_ratio([run.cpu_seconds for run in base], [run.cpu_seconds for run in own])
    latencies = [latency for run in own for latency in run.latencies]
    return {
        "seconds": [run.seconds for run in own],
        "cpu_seconds": [run.cpu_seconds for run in own],
        "client_cpu_seconds": [run.client_cpu_seconds for run in own],
        "requests_per_s": n_requests / statistics.median(run.seconds for run in own),
        "latency_p50_s": percentile(latencies, 0.5),
        "latency_p99_s": percentile(latencies, 0.99),
        "times_direct": ratio.value,
        "times_direct_95": [ratio.low, ratio.high],
        "times_direct_by_cpu_time": cpu.value,
        "times_direct_by_cpu_time_95": [cpu.low, cpu.high],
    }


# ---- streams


def streams(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Raises RuntimeError when a stream doesn't come to its end."""
    n, new_tokens = options.streams, options.stream_tokens
    prompts = [f"Stream number {i} of many begins here." for i in range(n)]
    settings = [
        "model=tiny",
        "engine.device=cpu",
        f"engine.max_running={n}",
        f"engine.pool_tokens={n * (new_tokens + 64)}",
        f"max_connections={2 * n}",
        f"max_waiting={2 * n}",
    ]
    with ServedProcess(settings, options.threads) as server:
        bodies = [body(prompt, new_tokens, model="tiny", **STREAMED) for prompt in prompts]
        server.load(bodies[:64], 64)
        server.flush()
        before = server.used()
        load = server.load(bodies, n)
        used = server.used()
    if _output_tokens(load) != n * new_tokens:
        raise RuntimeError(f"{_output_tokens(load)} tokens came instead of {n * new_tokens}")
    engine = make_engine(Settings(settings).engine)
    params = SamplingParams(max_tokens=new_tokens, temperature=0.0, ignore_eos=True)
    engine.generate(prompts[:64], params)
    engine.flush_cache()
    engine.reset_metrics()
    begun = time.perf_counter()
    engine.generate(prompts, params)
    alone = time.perf_counter() - begun
    steps = engine.metrics.steps
    ours = sum(step.schedule_s + step.cache_s for step in steps)
    whole = ours + sum(step.forward_s + step.other_s for step in steps)
    first = [exchange.first - exchange.sent for exchange in load.exchanges]
    n_steps, step_seconds = used.steps - before.steps, used.step_seconds - before.step_seconds
    say(f"{n} streams: {load.seconds:.2f} s; the engine alone: {alone:.2f} s")
    return {
        "streams": n,
        "finished": sum(exchange.status == 200 for exchange in load.exchanges),
        "seconds": load.seconds,
        "seconds_direct": alone,
        "tokens_per_s": _output_tokens(load) / load.seconds,
        "tokens_per_s_direct": n * new_tokens / alone,
        "ttft_p50_s": percentile(first, 0.5),
        "ttft_p99_s": percentile(first, 0.99),
        "cpu_seconds": used.cpu_seconds - before.cpu_seconds,
        "client_cpu_seconds": load.cpu_seconds,
        "steps": n_steps,
        "step_s": step_seconds / n_steps,
        "step_s_direct": whole / len(steps),
        "outside_steps_share": 1 - step_seconds / load.seconds,
        "schedule_and_cache_share_direct": ours / whole,
    }


# ---- memory


def memory(options: argparse.Namespace, say: Say) -> dict[str, Any]:
    """Raises RuntimeError when a request is refused."""
    few, many = options.few, options.many
    rng = random.Random(0)
    # a pool so small that all that it bounds, the keys of evicted pages too, is full after the first part
    settings = ["model=tiny", "engine.device=cpu", "engine.pool_tokens=6000"]
    with ServedProcess(settings, 1) as server:  # the model is too small for more threads

        def serve(n: int, seed: int, clients: int = AT_ONCE) -> None:
            bodies = []
            for _ in range(n):
                prompt = f"Family {rng.randrange(50)} begins alike. " * 3 + str(rng.randrange(10**6))
                bodies.append(
                    body(prompt, rng.randint(1, 24), model="tiny", **(STREAMED if rng.random() < 0.5 else {}))
                )
            server.load(bodies, clients, cut_share=CUT_SHARE, seed=seed)

        for clients in WARM_UP:
            serve(4 * clients, 0, clients)
        serve(few, 1)
        after_few = server.used()
        say(f"after {few} requests: {after_few.rss_bytes / 2**20:.1f} MiB")
        serve(many - few, 2)
        after_many = server.used()
        say(f"after {many} requests: {after_many.rss_bytes / 2**20:.1f} MiB")
        server.flush()
        cache = server.cache()
    lost = cache["pool_tokens"] - cache["free_tokens"] - cache["cached_tokens"]
    return {
        "requests": [few, many],
        "cut_share": CUT_SHARE,
        "rss_bytes": [after_few.rss_bytes, after_many.rss_bytes],
        "growth": after_many.rss_bytes / after_few.rss_bytes - 1,
        "leaked_pages": (lost + cache["cached_tokens"]) // cache["page_size"],  # after the flush nothing may be cached
    }


# ---- the report


def tables(result: dict[str, Any]) -> list[Table]:
    found = []
    if "overhead" in result:
        cell = result["overhead"]
        title = (
            f"{cell['requests']} MMLU prompts, {result['model']}, {AT_ONCE} in flight, {cell['new_tokens']} new tokens"
        )
        columns = (
            "system",
            "req/s",
            "p50 s",
            "p99 s",
            "time x direct",
            "(95 %)",
            "CPU x direct",
            "CPU s",
            "client CPU s",
        )
        grid = _grid(title, columns)
        for name, row in cell["systems"].items():
            low, high = row["times_direct_95"]
            grid.add_row(
                name,
                f"{row['requests_per_s']:.2f}",
                _seconds(row["latency_p50_s"]),
                _seconds(row["latency_p99_s"]),
                f"{row['times_direct']:.3f}",
                "-" if low is None else f"{low:.3f} - {high:.3f}",
                f"{row['times_direct_by_cpu_time']:.3f}",
                f"{statistics.median(row['cpu_seconds']):.1f}",
                f"{statistics.median(row['client_cpu_seconds']):.2f}",
            )
        found.append(grid)
    if "streams" in result:
        cell = result["streams"]
        columns = (
            "streams",
            "finished",
            "tokens/s",
            "direct",
            "TTFT p50 s",
            "p99 s",
            "step ms",
            "direct",
            "outside steps",
        )
        grid = _grid("1,000 streams at once, tiny", columns)
        grid.add_row(
            str(cell["streams"]),
            str(cell["finished"]),
            f"{cell['tokens_per_s']:,.0f}",
            f"{cell['tokens_per_s_direct']:,.0f}",
            _seconds(cell["ttft_p50_s"]),
            _seconds(cell["ttft_p99_s"]),
            f"{cell['step_s'] * 1e3:.1f}",
            f"{cell['step_s_direct'] * 1e3:.1f}",
            f"{cell['outside_steps_share']:.1%}",
        )
        found.append(grid)
    if "memory" in result:
        cell = result["memory"]
        grid = _grid(f"memory, {cell['cut_share']:.0%} broken off", ("requests", "MiB", "growth", "pages leaked"))
        for n, rss in zip(cell["requests"], cell["rss_bytes"], strict=True):
            grid.add_row(
                f"{n:,}", f"{rss / 2**20:.1f}", f"{rss / cell['rss_bytes'][0] - 1:+.2%}", str(cell["leaked_pages"])
            )
        found.append(grid)
    return found


def _grid(title: str, columns: Sequence[str]) -> Table:
    grid = Table(title=title)
    for name in columns:
        grid.add_column(name, justify="left" if name == "system" else "right")
    return grid


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def missed(result: dict[str, Any]) -> list[str]:
    """Targets that were not reached, in words."""
    found = []
    if "overhead" in result and (over := result["overhead"]["systems"]["http"]["times_direct"] - 1) > TARGET_OVERHEAD:
        found.append(f"HTTP costs {over:.1%} of the time; the target is {TARGET_OVERHEAD:.0%}")
    if "streams" in result and result["streams"]["finished"] != result["streams"]["streams"]:
        found.append(f"only {result['streams']['finished']} streams finished")
    if "memory" in result:
        if (growth := result["memory"]["growth"]) > TARGET_GROWTH:
            found.append(f"memory grew by {growth:.1%}; the target is {TARGET_GROWTH:.0%}")
        if result["memory"]["leaked_pages"]:
            found.append(f"{result['memory']['leaked_pages']} pages leaked")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when a target was missed, something went wrong, or the data isn't there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with mmlu/ and tokenizers/ (default: RADIXLAB_DATA)")
    parser.add_argument("--only", nargs="+", default=["overhead", "streams", "memory"])
    parser.add_argument("--model", default="llama-110m", help="of the overhead")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the engine")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=240, help="in each run of the overhead")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--stream-tokens", type=int, default=64)
    parser.add_argument("--few", type=int, default=FEW)
    parser.add_argument("--many", type=int, default=MANY)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/server.json"))
    options = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 140)
    say: Say = lambda line: console.print("  " + line)  # noqa: E731
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "benchmark": "server",
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "environment": environment(),
    }
    cores = result["environment"]["cores"]
    console.print(f"{options.threads} engine threads on {cores} cores, which the event loop and the load share")
    data = data_folder(options.data)
    try:
        if "overhead" in options.only:
            if data is None:
                raise FileNotFoundError(
                    "no data: give --data DIR or set RADIXLAB_DATA to a folder with mmlu/, tokenizers/"
                )
            result["overhead"] = overhead(options, data, say)
        if "streams" in options.only:
            result["streams"] = streams(options, say)
        if "memory" in options.only:
            result["memory"] = memory(options, say)
    except (FileNotFoundError, RuntimeError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    write_json(options.out, result)
    for grid in tables(result):
        console.print(grid)
    console.print(f"written to {options.out}")
    for line in missed(result):
        console.print(line, style="red", markup=False)
    return 1 if missed(result) else 0


if __name__ == "__main__":
    raise SystemExit(main())
