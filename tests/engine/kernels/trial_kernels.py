# ruff: noqa: N803
"""Compiles small kernels that are good or bad on purpose and prints what inspection says of each, as JSON.

A program of its own: the tests' process interprets kernels, and those can't be compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.chips import CHIPS
from engine.kernels.compile import compile_launch
from engine.kernels.inspection import code_problems
from engine.kernels.launch import launch, recording
from engine.kernels.tiles import Tile

HALF = torch.bfloat16


@triton.jit
def copy(source, target, n, stride, maybe, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(source + at * stride, mask=at < n, other=0.0)
    if maybe is not None:
        x += tl.load(maybe + at, mask=at < n, other=0.0)
    tl.store(target + at, x, mask=at < n)


@triton.jit
def product(a, b, c, k, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    rows, columns, inner = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    total = tl.zeros((M, N), tl.float32)
    for first in range(0, k, K):
        left = tl.load(a + rows[:, None] * k + first + inner[None, :])
        right = tl.load(b + columns[:, None] * k + first + inner[None, :])
        total = tl.dot(left, right.trans(), total, input_precision="ieee")
    tl.store(c + rows[:, None] * N + columns[None, :], total.to(c.dtype.element_ty))


def _copied(source: Tensor, n: int = 1024, stride: int = 1, maybe: Tensor | None = None) -> None:
    out = torch.empty(n, dtype=source.dtype, device="meta")
    launch(copy, (1,), source, out, n, stride, maybe, tile=Tile({"BLOCK": 1024}, num_warps=4, num_stages=1))


def _multiplied(tile: Tile, dtype: torch.dtype = HALF) -> None:
    a, b, c = (torch.empty(256, 256, dtype=dtype, device="meta") for _ in range(3))
    launch(product, (1,), a, b, c, 256, tile=tile)


ALIGNED = torch.empty(4096, dtype=HALF, device="meta")
SMALL = Tile({"M": 64, "N": 64, "K": 32}, num_warps=4, num_stages=3)
TRIALS: dict[str, Callable[[], None]] = {
    "aligned": lambda: _copied(ALIGNED),
    "one element further": lambda: _copied(ALIGNED[1:]),
    "stride 2": lambda: _copied(ALIGNED, stride=2),
    "with another": lambda: _copied(ALIGNED, maybe=ALIGNED),
    "product": lambda: _multiplied(SMALL),
    "float32 product": lambda: _multiplied(SMALL, torch.float32),
    "too many numbers a thread": lambda: _multiplied(Tile({"M": 256, "N": 256, "K": 32}, num_warps=4, num_stages=2)),
    "too many stages": lambda: _multiplied(Tile({"M": 128, "N": 128, "K": 64}, num_warps=8, num_stages=8)),
}


def main() -> None:
    said = {}
    for name, trial in TRIALS.items():
        for capability in (86, 90):
            with recording() as launches:
                trial()
            code = compile_launch(launches[0], CHIPS[capability])
            said[f"{name} sm_{capability}"] = code._asdict() | {
                "problems": code_problems(code, CHIPS[capability], chosen=True),
                "as candidate": code_problems(code, CHIPS[capability], chosen=False),
            }
    print(json.dumps(said))


if __name__ == "__main__":
    main()
