"""The least time a kernel can take: bytes it must move and operations it must do, over what a GPU can do at best."""

from __future__ import annotations

from typing import NamedTuple


class Work(NamedTuple):
    """What one call must move and compute, counted, not measured."""

    bytes: int
    """Through device memory: each input read once, each output written once."""
    operations: int = 0
    """Floating-point operations of matrix products (a multiply and an add are two)."""


class Ceilings(NamedTuple):
    """A GPU at its best, from its data sheet."""

    name: str
    bytes_per_s: float
    matrix_per_s: float
    """Dense operations a second in float16 and bfloat16."""


GPUS = (
    Ceilings("A10G", 600e9, 70e12),
    Ceilings("A100 80GB SXM", 2039e9, 312e12),
    Ceilings("H100 SXM", 3350e9, 989e12),
    Ceilings("H200", 4800e9, 989e12),
)


def floor_s(work: Work, gpu: Ceilings) -> float:
    """Seconds below which no version can run."""
    return max(work.bytes / gpu.bytes_per_s, work.operations / gpu.matrix_per_s)
