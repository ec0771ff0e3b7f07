"""The least time a kernel can take: bytes it must move and operations it must do, over what a GPU can do at best.

`python -m engine.kernels.roofline` prints it for every kernel in the steps of a 7B model; `--write` puts that into
`docs/kernels.md`.
"""

from __future__ import annotations

import sys
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


def main(arguments: list[str]) -> int:
    from engine.kernels import roofline_table  # which imports the kernels, and they this

    if arguments not in ([], ["--write"]):
        print("usage: python -m engine.kernels.roofline [--write]", file=sys.stderr)
        return 2
    print("Counted from shapes and data sheets, not measured.", *roofline_table.lines(), sep="\n")
    if arguments:
        roofline_table.write()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
