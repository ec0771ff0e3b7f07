"""What a kernel file shows of itself to inspection (without a GPU) and to tuning (on one)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from engine.kernels.tiles import Shape, Tile, Tiles

Call = Callable[[Tile | None], object]
"""Launches the kernel with that tile or its own, gives what it has computed: a tensor or a tuple of them."""


class Case(NamedTuple):
    """One typical use of a kernel. A kernel file's `cases()` lists some that together compile all its variants."""

    label: str
    """E.g. `head_dim=128 group=4 bfloat16 int8-kv`."""
    tiles: Tiles
    """Of the kernel that the tile goes to."""
    shape: Shape
    """What that kernel's tile is chosen by in this case."""
    make: Callable[[torch.device], Call]
    """(device) -> call: all tensors are made here (valid tables and lengths, random numbers), none in the call, so that
    it can be timed. Inspection calls `make(meta)(tile)` inside `recording()`: the tensors have no memory there."""
    matrix: bool
    """It has products for the matrix units, so matrix instructions must be in its code (False for float32: no unit
    multiplies that exactly)."""
    capability: int = 80
    """The least compute capability that can run it (89 for float8)."""
