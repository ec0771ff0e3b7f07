"""Tiles of the invariant product: all of a chip's give the same bits, so they are chosen for speed alone.

Where nothing was measured, the choice is by a count: the slowest of what a tile makes device memory, the second-level
cache, a processor's port to it and its matrix unit do.
"""

from __future__ import annotations

from typing import NamedTuple

import triton

from engine.kernels.tiles import Shape, Tile, Tiles


class Rates(NamedTuple):
    """Of a kind of chip, roughly, to weigh tiles against each other."""

    processors: int
    device: float
    """Bytes a nanosecond from device memory."""
    cache: float
    """From the second-level cache, to all processors."""
    port: float
    """To one processor, as far as the latency lets it."""
    matrix: float
    """Operations a nanosecond of one processor with a large tile."""


RATES = {
    80: Rates(108, 1800, 4000, 30, 2600),
    86: Rates(80, 550, 1800, 15, 900),
    89: Rates(142, 800, 4000, 15, 1900),
    90: Rates(132, 4300, 5500, 50, 6000),
    100: Rates(148, 7000, 9000, 70, 11000),
}


def tile(rows: int, columns: int, inputs: int, warps: int, stages: int) -> Tile:
    """A tile of [rows, columns] of y, loading `inputs` of each row and column at a time."""
    return Tile({"BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": inputs, "GROUP_M": 8}, warps, stages)


def bulk(rows: int, columns: int, inputs: int, warps: int, stages: int, parts: int = 1) -> Tile:
    """One for the kernel of the bulk copy engine, stored in so many parts."""
    plain = tile(rows, columns, inputs, warps, stages)
    return plain._replace(constants={**plain.constants, "PARTS": parts})


EXACT = (tile(64, 64, 16, 8, 3), tile(64, 32, 32, 4, 3), tile(16, 32, 32, 4, 3))
"""float32: fused multiply-adds."""
WARP = (
    tile(128, 128, 32, 4, 4),
    tile(64, 128, 64, 4, 3),
    tile(64, 64, 64, 4, 4),
    tile(32, 64, 128, 4, 3),
    tile(32, 32, 128, 4, 3),
    tile(16, 64, 128, 4, 3),
    tile(16, 32, 128, 4, 4),
)
"""mma.sync, within the 99 KiB of shared memory of the smaller chips."""
BULK = (
    bulk(128, 256, 64, 8, 4, parts=2),
    bulk(128, 256, 64, 8, 3),
    bulk(128, 128, 64, 8, 4),
    bulk(128, 64, 64, 8, 5),
    bulk(64, 64, 128, 4, 4),
    bulk(64, 32, 128, 4, 6),
    bulk(64, 16, 128, 4, 6),
)
MANY_ROWS = (tile(128, 256, 64, 8, 3), tile(128, 128, 64, 8, 4), tile(128, 64, 64, 8, 4))
FEW_ROWS = (tile(64, 64, 128, 4, 3), tile(64, 32, 128, 4, 4), tile(64, 16, 128, 4, 4))
"""Two programs fit on a processor of sm_90."""
ALONE = (tile(64, 64, 128, 4, 5), tile(64, 32, 128, 4, 6), tile(64, 16, 128, 4, 8))
"""The same for a processor that has only one: it keeps as many bytes on their way by itself."""
ROWS = 8192
"""More choose like this many."""


def shape_of(m: int, n: int, k: int, dtype: str) -> Shape:
    """Row counts up to the next power of two share a tile."""
    return {"m": min(max(triton.next_power_of_2(m), 16), ROWS), "n": n, "k": k, "dtype": dtype}


def candidates(capability: int, shape: Shape) -> tuple[Tile, ...]:
    """All use the same matrix instruction. Where the count sees no difference, the first is taken."""
    if shape["dtype"] == "float32":
        return EXACT
    if 100 <= capability < 120:
        return (*BULK, *MANY_ROWS, *FEW_ROWS[1:])
    if capability == 90:
        return (*BULK[:4], *MANY_ROWS, *FEW_ROWS, *ALONE, *BULK[4:])
    return (MANY_ROWS[0], *WARP) if capability == 80 else WARP


def default(capability: int, shape: Shape) -> Tile:
    chip = RATES.get(capability, RATES[100 if 100 <= capability < 120 else 86])
    tiles = candidates(capability, shape)
    needed = max(int(shape["m"]), min(tile.constants["BLOCK_M"] for tile in tiles))
    fitting = [tile for tile in tiles if tile.constants["BLOCK_M"] <= needed]
    chosen = min(fitting, key=lambda tile: cost_ns(chip, tile, shape))
    if capability == 90 and chosen in FEW_ROWS and programs(chosen, shape) <= chip.processors:
        return ALONE[FEW_ROWS.index(chosen)]
    return chosen


def programs(tile: Tile, shape: Shape) -> int:
    """Tiles of y."""
    return triton.cdiv(int(shape["m"]), tile.constants["BLOCK_M"]) * triton.cdiv(
        int(shape["n"]), tile.constants["BLOCK_N"]
    )


def cost_ns(chip: Rates, tile: Tile, shape: Shape) -> float:
    """What takes longest decides, the rest a little: it overlaps, but never wholly."""
    m, n, k = (int(shape[name]) for name in ("m", "n", "k"))
    exact = shape["dtype"] == "float32"
    size, matrix = (4, chip.matrix / 15) if exact else (2, chip.matrix)
    rows, columns = tile.constants["BLOCK_M"], tile.constants["BLOCK_N"]
    count = programs(tile, shape)
    rounds = triton.cdiv(count, chip.processors)
    loaded = (min(rows, m) + columns) * k * size
    small = 1 + 4096 / (rows * columns)  # operands are read from shared memory for few products each
    costs = (
        (n + m) * k * size / chip.device,
        count * loaded / chip.cache,
        rounds * loaded / chip.port,
        rounds * 2 * rows * columns * k * small / matrix,
    )
    return max(costs) + 0.1 * sum(costs)


TILES = Tiles("matmul_invariant", default, candidates)
