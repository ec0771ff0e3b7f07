"""How long device work takes: replays of a graph that holds many calls, over inputs that don't fit in the cache."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

from engine.clock import stopwatch

Call = Callable[[], object]
L2_SHARE = 4
"""The inputs that take turns are together this many times the L2 cache."""
GRAPH_S = 4e-3
"""About how long the device works on one replay."""
REPLAYS = 15
MOST_CALLS = 400
"""In one graph."""


def n_rotating(bytes_per_call: int, device: torch.device, most: int = 12) -> int:
    """How many sets of inputs must take turns so that none is found in the L2 cache."""
    if device.type != "cuda":
        return 1
    cache = int(torch.cuda.get_device_properties(device).L2_cache_size)
    return max(1, min(most, -(-L2_SHARE * cache // max(1, bytes_per_call))))


def median_s(calls: Sequence[Call], device: torch.device) -> float:
    """Seconds of one call, the median of several replays of a graph in which the calls take turns.

    Calls must be safe to capture and do the same work on different inputs. On the CPU, where it means nothing: of the
    first call.
    """
    if device.type != "cuda":
        begun = stopwatch()
        calls[0]()
        return stopwatch() - begun
    for call in calls:  # compiles, loads, allocates
        call()
    once = events_s(calls, device, repeats=3)
    n = len(calls) * max(1, min(MOST_CALLS, int(GRAPH_S / max(once, 1e-7))) // len(calls))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        calls[0]()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream):
            for i in range(n):
                calls[i % len(calls)]()
    torch.cuda.current_stream().wait_stream(stream)
    for _ in range(2):
        graph.replay()
    seconds = _replays(graph.replay, REPLAYS)
    graph.reset()
    return statistics.median(seconds) / n


def events_s(calls: Sequence[Call], device: torch.device, repeats: int) -> float:
    """Seconds of one call by events around all of them: for what can't be captured. Host gaps count."""
    if device.type != "cuda":
        begun = stopwatch()
        calls[0]()
        return stopwatch() - begun

    def once() -> None:
        for call in calls:
            call()

    return statistics.median(_replays(once, repeats)) / len(calls)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _replays(replay: Call, n: int) -> list[float]:
    found = []
    for _ in range(n):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        replay()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return found
