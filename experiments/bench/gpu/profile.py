"""Where the device's time goes in a step: its kernels by time, and the gaps between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from experiments.bench.gpu.timing import synchronize

SHORT_GAP_S = 10e-6
"""A shorter gap between kernels is the device's own doing (the next launch of a graph), not waiting for the host."""
TOP = 15
NAME_WIDTH = 90
OVERHEAD = ("Activity Buffer Request", "Command Buffer Full", "Lazy Function Loading", "Module Loading")
"""Of the profiler and the driver, which it lists among the device's work."""


class Span(NamedTuple):
    """One kernel or copy on the device, seconds."""

    name: str
    begin: float
    end: float


class Profile(NamedTuple):
    steps: int
    spans: tuple[Span, ...]
    """In order of their beginnings."""

    @property
    def busy_s(self) -> float:
        """Of a step, with at least one kernel running."""
        return union(self.spans, 0.0) / self.steps

    @property
    def own_s(self) -> float:
        """Of a step, with a kernel running or the next one about to: short gaps count."""
        return union(self.spans, SHORT_GAP_S) / self.steps

    def markdown(self, title: str) -> str:
        whole = sum(span.end - span.begin for span in self.spans)
        lines = [
            f"## {title}",
            "",
            f"Of {self.steps} steps, each: {len(self.spans) / self.steps:.0f} kernels and copies, "
            f"{self.busy_s * 1e3:.3f} ms with one running, {self.own_s * 1e3:.3f} ms with gaps below "
            f"{SHORT_GAP_S * 1e6:.0f} µs. Gaps above that in this profile (profiling itself widens them): "
            f"{self.long_gaps_s() * 1e3:.3f} ms a step.",
            "",
            "| kernel | calls a step | µs a step | µs a call | share |",
            "|---|---:|---:|---:|---:|",
        ]
        for name, times in self.by_kernel()[:TOP]:
            total = sum(times)
            shown = name if len(name) <= NAME_WIDTH else name[: NAME_WIDTH - 1] + "…"
            cells = (
                "`" + shown.replace("|", "\\|").replace("`", "'") + "`",
                f"{len(times) / self.steps:.1f}",
                f"{total / self.steps * 1e6:.1f}",
                f"{total / len(times) * 1e6:.2f}",
                f"{total / whole:.1%}",
            )
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, ""])

    def by_kernel(self) -> list[tuple[str, list[float]]]:
        """Durations by name, the most time first."""
        times: dict[str, list[float]] = defaultdict(list)
        for span in self.spans:
            times[span.name].append(span.end - span.begin)
        return sorted(times.items(), key=lambda item: -sum(item[1]))

    def long_gaps_s(self) -> float:
        """Of a step, in gaps that aren't short."""
        if not self.spans:
            return 0.0
        whole = max(span.end for span in self.spans) - self.spans[0].begin
        return whole / self.steps - self.own_s


def union(spans: Sequence[Span], bridged: float) -> float:
    """Seconds covered by spans in order of their beginnings; gaps of up to `bridged` seconds count as covered."""
    covered, begin, end = 0.0, None, 0.0
    for span in spans:
        if begin is None:
            begin, end = span.begin, span.end
        elif span.begin - end <= bridged:
            end = max(end, span.end)
        else:
            covered += end - begin
            begin, end = span.begin, span.end
    return covered if begin is None else covered + end - begin


def profiled(step: Callable[[], object], steps: int, device: torch.device) -> Profile:
    """Profiles `steps` calls. Raises RuntimeError when the profiler saw nothing of the device."""
    on_gpu = device.type == "cuda"
    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
        synchronize(device)
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    spans = [
        Span(event.name, event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in profiler.events()
        if event.device_type == kind and event.name not in OVERHEAD
    ]
    if not spans:
        raise RuntimeError("the profiler saw no kernel on the device")
    return Profile(steps, tuple(sorted(spans, key=lambda span: (span.begin, span.end))))
