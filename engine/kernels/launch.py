"""One door through which every Triton kernel is launched, and through which it can be looked at instead.

`launch` runs a kernel. Inside `recording()` it only notes what would run: kernel, arguments, tile. So the very launches
of the engine can be compiled for a chip that isn't there (`engine.kernels.inspect`), from tensors without memory.
A launcher may not look at the values in a tensor: that would wait for the device, and there would be none to see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from engine.kernels.tiles import Tile


class Launch(NamedTuple):
    kernel: Any
    """The `@triton.jit` function."""
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    """Positional: tensors (pointers), ints, floats, None."""
    constants: Mapping[str, Any]
    """Compile-time parameters (`tl.constexpr`) by name, the tile's included."""
    tile: Tile


_recorded: list[Launch] | None = None


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, tile: Tile, **constants: Any) -> None:
    """Runs `kernel` over `grid` with positional `args`; `constants` and those of `tile` are compile-time parameters.

    An empty grid runs nothing.
    """
    constants = {**constants, **tile.constants}
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, args, constants, tile))
    elif all(grid):
        kernel[grid](*args, **constants, num_warps=tile.num_warps, num_stages=tile.num_stages)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Launches in here are listed and not run."""
    global _recorded
    before, _recorded = _recorded, []
    try:
        yield _recorded
    finally:
        _recorded = before
