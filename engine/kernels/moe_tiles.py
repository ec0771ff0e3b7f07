"""Tiles of the grouped products: by how many rows an expert gets, which matrix units there are, how weights are stored.

All tiles of a chip use one kind of matrix instruction, as those of `matmul_invariant` and for the same reason. Where
nothing was measured, the choice is by a count of what a tile makes memory, caches and matrix units do.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton

from engine.kernels.matmul_invariant_tiles import EXACT, RATES, WARP, Rates, tile
from engine.kernels.tiles import Shape, Tile, Tiles

HOPPER = (
    tile(128, 256, 64, 8, 3),
    tile(128, 128, 64, 8, 4),
    tile(128, 64, 64, 8, 4),
    tile(64, 128, 64, 4, 4),
    tile(64, 64, 128, 4, 3),
    tile(64, 32, 128, 4, 4),
    tile(64, 64, 128, 4, 5),
    tile(64, 32, 128, 4, 6),
)
"""The warp group's instructions (sm_90) and the tensor memory's (sm_100) take at least 64 rows."""
CAST = (WARP[0], tile(64, 128, 32, 4, 4), *WARP[2:])
"""For weights of 8 bits on the warp's instructions: casting a wider tile takes more registers than there are."""
UNALIGNED = (tile(64, 32, 64, 4, 2), tile(64, 64, 32, 4, 2)), (tile(16, 32, 64, 4, 2), tile(32, 64, 32, 4, 2))
"""For sm_90 and sm_100, and for the others: rows that begin anywhere are loaded number by number."""
ALIGNMENT = 16
"""Triton loads 16 bytes at once only where it sees that all rows begin at multiples of this many numbers."""
PAIRS = 16384
"""More choose like this many."""


def shape_of(pairs: int, experts: int, hidden: int, inner: int, dtype: str, weights: str) -> Shape:
    """`pairs`: of a token and an expert it takes. Counts up to the next power of two share a tile."""
    return {
        "pairs": min(triton.next_power_of_2(max(pairs, 1)), PAIRS),
        "experts": experts,
        "hidden": hidden,
        "inner": inner,
        "dtype": dtype,
        "weights": weights,
    }


def candidates(capability: int, shape: Shape) -> tuple[Tile, ...]:
    """Where the count sees no difference, the first is taken."""
    if shape["dtype"] == "float32":
        return EXACT
    many = capability == 90 or 100 <= capability < 120
    if int(shape["hidden"]) % ALIGNMENT or int(shape["inner"]) % ALIGNMENT:
        return UNALIGNED[0 if many else 1]
    if many:
        return HOPPER
    return WARP if shape["weights"] == shape["dtype"] else CAST


def default(capability: int, shape: Shape) -> Tile:
    chip = RATES.get(capability, RATES[100 if 100 <= capability < 120 else 86])
    tiles = candidates(capability, shape)
    per_expert = triton.cdiv(int(shape["pairs"]), experts_hit(shape))
    needed = max(per_expert, min(tile.constants["BLOCK_M"] for tile in tiles))
    fitting = [tile for tile in tiles if tile.constants["BLOCK_M"] <= needed]
    return min(fitting, key=lambda tile: cost_ns(chip, tile, shape))


def experts_hit(shape: Shape) -> int:
    """At most."""
    return min(int(shape["pairs"]), int(shape["experts"]))


def most_tiles(pairs: int, experts: int, rows: int) -> int:
    """Tiles of `rows` pairs that no split of the pairs among the experts exceeds: all but one row of a tile may be
    empty once an expert."""
    return (pairs + min(pairs, experts) * (rows - 1)) // rows


def cost_ns(chip: Rates, tile: Tile, shape: Shape) -> float:
    """Of both products. What takes longest decides, the rest a little: it overlaps, but never wholly."""
    return sum(_cost_ns(chip, tile, shape, outputs, inputs) for outputs, inputs in _products(shape))


def _products(shape: Shape) -> Iterator[tuple[int, int]]:
    hidden, inner = int(shape["hidden"]), int(shape["inner"])
    yield 2 * inner, hidden
    yield hidden, inner


def _cost_ns(chip: Rates, tile: Tile, shape: Shape, outputs: int, inputs: int) -> float:
    exact = shape["dtype"] == "float32"
    size, matrix = (4, chip.matrix / 15) if exact else (2, chip.matrix)
    stored = 1 if shape["weights"] in ("int8", "float8_e4m3fn") else size
    rows, columns = tile.constants["BLOCK_M"], tile.constants["BLOCK_N"]
    pairs, hit = int(shape["pairs"]), experts_hit(shape)
    per_expert = triton.cdiv(pairs, hit)
    count = hit * triton.cdiv(per_expert, rows) * triton.cdiv(outputs, columns)
    rounds = triton.cdiv(count, chip.processors)
    loaded = (min(rows, per_expert) * size + columns * stored) * inputs
    small = 1 + 4096 / (rows * columns)  # operands are read from shared memory for few products each
    costs = (
        (hit * outputs * stored + pairs * size) * inputs / chip.device,
        count * loaded / chip.cache,
        rounds * loaded / chip.port,
        rounds * 2 * rows * columns * inputs * small / matrix,
    )
    return max(costs) + 0.1 * sum(costs)


TILES = Tiles("moe", default, candidates)
