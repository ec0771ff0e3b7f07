"""What a kernel file shows of itself to inspection and tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from engine.kernels.tiles import Shape, Tile, Tiles


class Case(NamedTuple):
    """One typical use of a kernel. A kernel file's `cases()` lists some that together compile all its variants."""

    label: str
    """E.g. `head_dim=128 group=4 bfloat16 int8-kv`."""
    tiles: Tiles
    """Of the kernel that `tile` below goes to."""
    shape: Shape
    """What that kernel's tile is chosen by in this case."""
    call: Callable[[Tile | None], None]
    """Launches it on tensors of the device `meta` (to be called inside `recording()`), with that tile or its own."""
    matrix: bool
    """It has matrix products, so matrix instructions must be in its code."""
    capability: int = 80
    """The least compute capability that can run it (89 for float8)."""
