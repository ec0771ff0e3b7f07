"""Copies between host and GPU that wait for nobody, and the same on a machine without one.

Numbers for a step are written to pinned memory and copied by one asynchronous transfer; what comes back is copied to
pinned memory, with an event that says when it is there. On the CPU (kernels under Triton's interpreter) both are plain
copies, so that everything above runs there too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.clock import stopwatch

STAGES = 4
"""Uploads that may be under way at once; the fifth waits for the first."""
ALIGNMENT = 64
"""Bytes between the beginnings of packed arrays: vector loads need 16."""


class Upload:
    """Packs arrays into one pinned buffer and copies them to the device in one transfer."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._pinned = device.type == "cuda"
        self._buffers: list[Tensor] = [torch.empty(0, dtype=torch.uint8)] * STAGES
        self._done: list[torch.cuda.Event | None] = [None] * STAGES
        self._next = 0

    def __call__(self, arrays: Mapping[str, npt.NDArray], into: Tensor | None = None) -> dict[str, Tensor]:
        """Each array as a tensor of its dtype and shape on the device. They are views of one buffer.

        into: uint8 device buffer to copy to (a graph's own, say) instead of a new one. Its contents behind the arrays
        stay as they were.
        """
        places: dict[str, tuple[int, npt.NDArray]] = {}
        end = 0
        for name, array in arrays.items():
            places[name] = (end, np.ascontiguousarray(array))
            end += -(-places[name][1].nbytes // ALIGNMENT) * ALIGNMENT
        host = self._stage(end)
        flat = host.numpy()
        for at, array in places.values():
            flat[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)
        target = torch.empty(end, dtype=torch.uint8, device=self.device) if into is None else into
        target[:end].copy_(host[:end], non_blocking=True)
        self._staged()
        return {
            name: target[at : at + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
            for name, (at, array) in places.items()
        }

    def _stage(self, size: int) -> Tensor:
        i = self._next
        if (event := self._done[i]) is not None:
            event.synchronize()
        if len(self._buffers[i]) < size:
            self._buffers[i] = torch.empty(max(size, 4096) * 2, dtype=torch.uint8, pin_memory=self._pinned)
        return self._buffers[i]

    def _staged(self) -> None:
        if self._pinned:
            event = torch.cuda.Event()
            event.record()
            self._done[self._next] = event
        self._next = (self._next + 1) % STAGES


class Download:
    """Device tensors on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._event: torch.cuda.Event | None = None
        if tensors and tensors[0].device.type == "cuda":
            self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, tensor in zip(self._host, tensors):
                host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = [t.clone() for t in tensors]

    def wait(self) -> list[Tensor]:
        """The tensors on the host, once they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._host


class Timer:
    """Seconds that the device spends from here to `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._begun = stopwatch()
        self._ended = self._begun
        self._events: list[torch.cuda.Event] = []
        self._on_gpu = device.type == "cuda"
        self._mark()

    def stop(self) -> None:
        self._ended = stopwatch()
        self._mark()

    def seconds(self) -> float:
        """Once the device has passed the stop."""
        if self._on_gpu:
            self._events[1].synchronize()
            return self._events[0].elapsed_time(self._events[1]) / 1000
        return self._ended - self._begun

    def _mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append(event)
