"""CUDA graphs of decode steps: one for each of a ladder of batch sizes, replayed for every batch up to that size.

A replay costs the host one launch instead of hundreds. All graphs read one static buffer, at the places where padded
arrays of their size are packed, and write one buffer of logits; what lies between comes from one pool of memory, which
they may share because no two run at once. They are captured from the largest to the smallest, so that the smaller fit
into what the larger left. Sizes from which on a shared prefix may pay have a second graph with the kernels for it.
What wasn't captured (on the CPU, nothing is) is run as the same padded pass over the same static buffers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from engine.executor.gpu_device import ALIGNMENT, Upload
from engine.executor.gpu_step import HostStep

Run = Callable[[HostStep, Mapping[str, Tensor]], Tensor]
CHANGES_A_ROW = 32
"""New pages a row that fit in the static buffer; steps that bring more make a copy of their own for them."""


class Kind(NamedTuple):
    """Which graph."""

    n_rows: int
    shares: bool


def ladder(most: int) -> list[int]:
    """Batch sizes up to `most`: steps of 8 up to 64, of 16 up to 128, of 32 up to 256, ..."""
    sizes = [1, 2, 4]
    size, step = 8, 8
    while size < most:
        sizes.append(size)
        if size >= 64 and size & (size - 1) == 0:
            step *= 2
        size += step
    return [size for size in sizes if size < most] + [most]


class DecodeGraphs:
    """Replays decode steps. `sizes`: the ladder, ascending."""

    def __init__(self, run: Run, upload: Upload, sizes: Sequence[int], vocab_size: int, dtype: torch.dtype) -> None:
        self.sizes = sizes
        self.upload = upload
        self._run = run
        self._on_gpu = upload.device.type == "cuda"
        self._logits = torch.empty(sizes[-1], vocab_size, dtype=dtype, device=upload.device)
        self._static = torch.empty(0, dtype=torch.uint8, device=upload.device)
        self._graphs: dict[Kind, torch.cuda.CUDAGraph] = {}
        self._memory = torch.cuda.graph_pool_handle() if self._on_gpu else None

    def size_for(self, n: int) -> int | None:
        """The smallest size that holds n rows; None when none does."""
        return next((size for size in self.sizes if size >= n), None)

    def capture(self, steps: Mapping[Kind, HostStep]) -> None:
        """Captures a graph for each; the steps have no changes, and nothing is stored when they run."""
        size = max(_bytes(step) for step in steps.values()) + CHANGES_A_ROW * self.sizes[-1] * 12 + 2 * ALIGNMENT
        self._static = torch.empty(size, dtype=torch.uint8, device=self.upload.device)
        for kind in sorted(steps, reverse=True):
            there = self.upload(steps[kind].arrays, into=self._static)
            if not self._on_gpu:
                continue
            self._once(steps[kind], there)  # compiles, and takes what libraries keep for themselves
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._memory):
                self._once(steps[kind], there)
            self._graphs[kind] = graph

    def fits(self, step: HostStep) -> bool:
        """The static buffer holds the step's arrays and its changes."""
        return _bytes(step) <= len(self._static)

    def stage(self, step: HostStep) -> dict[str, Tensor]:
        """Copies the step's arrays to where the graphs read them."""
        return self.upload(step.arrays, into=self._static)

    def replay(self, step: HostStep, there: Mapping[str, Tensor], n_rows: int) -> Tensor:
        """Runs the staged step. Its logits stay until the next replay: [n_rows, vocab]."""
        graph = self._graphs.get(Kind(len(there["tokens"]), step.stage.shares))
        if graph is not None:
            graph.replay()
        else:
            self._once(step, there)
        return self._logits[:n_rows]

    @torch.inference_mode()
    def _once(self, step: HostStep, there: Mapping[str, Tensor]) -> None:
        self._logits[: len(there["tokens"])].copy_(self._run(step, there))


def _bytes(step: HostStep) -> int:
    return sum(-(-array.nbytes // ALIGNMENT) * ALIGNMENT for array in step.arrays.values())
