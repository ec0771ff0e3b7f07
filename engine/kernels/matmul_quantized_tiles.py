"""Tiles of the product with 8-bit weights.

Where nothing was measured, they are chosen by a count as in `matmul_invariant_tiles`: the slowest of what a tile makes
device memory, the second-level cache, a processor's port to it and its matrix unit do. A weight has half the bytes, and
is widened before it is multiplied.
"""

from __future__ import annotations

import triton

from engine.kernels.matmul_invariant_tiles import RATES, ROWS, Rates
from engine.kernels.tiles import Shape, Tile, Tiles


def tile(outputs: int, tokens: int, inputs: int, warps: int, stages: int) -> Tile:
    """A tile of [outputs, tokens] of y transposed, loading `inputs` of each at a time."""
    return Tile({"BLOCK_N": outputs, "BLOCK_M": tokens, "BLOCK_K": inputs, "GROUP_M": 8}, warps, stages)


EXACT = (tile(32, 64, 16, 4, 3), tile(32, 16, 32, 4, 3))
"""float32: fused multiply-adds. With 64 outputs Triton 3.7 takes the matrix unit of sm_100, which would round x."""
WARP = (
    tile(128, 128, 64, 8, 3),
    tile(128, 64, 64, 4, 3),
    tile(64, 64, 128, 4, 3),
    tile(64, 32, 128, 4, 4),
    tile(64, 16, 128, 4, 4),
    tile(32, 16, 256, 4, 4),
)
"""mma.sync, within the 99 KiB of shared memory of the smaller chips."""
GROUP = (
    tile(128, 256, 64, 8, 4),
    tile(128, 128, 64, 8, 4),
    tile(128, 64, 128, 4, 4),
    tile(64, 64, 128, 4, 4),
    tile(64, 32, 128, 4, 5),
    tile(64, 16, 128, 4, 6),
)
"""WGMMA and tcgen05: one kind of instruction."""
FEW_OUTPUTS = (tile(32, 32, 256, 4, 4), tile(32, 16, 256, 4, 4), tile(16, 16, 256, 4, 5))
"""mma.sync on chips that have those: more programs for few tokens."""


def shape_of(m: int, n: int, k: int, dtype: str, weight: str, *, invariant: bool) -> Shape:
    """Token counts up to the next power of two share a tile."""
    rows = min(max(triton.next_power_of_2(m), 16), ROWS)
    return {"m": rows, "n": n, "k": k, "dtype": dtype, "weight": weight, "invariant": int(invariant)}


def candidates(capability: int, shape: Shape) -> tuple[Tile, ...]:
    """With `invariant` all use the same matrix instruction. Where the count sees no difference, the first is taken."""
    if shape["dtype"] == "float32":
        return EXACT
    if not 90 <= capability < 120:
        return WARP
    return GROUP if shape["invariant"] else (*GROUP, *FEW_OUTPUTS)


def default(capability: int, shape: Shape) -> Tile:
    chip = RATES.get(capability, RATES[100 if 100 <= capability < 120 else 86])
    tiles = candidates(capability, shape)
    needed = max(int(shape["m"]), min(tile.constants["BLOCK_M"] for tile in tiles))
    fitting = [tile for tile in tiles if tile.constants["BLOCK_M"] <= needed]
    return min(fitting, key=lambda tile: cost_ns(chip, tile, shape))


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
    loaded = (min(rows, m) * size + columns) * k
    small = 1 + 4096 / (rows * columns)  # operands are read from shared memory for few products each
    widening = columns * k / 512  # numbers a nanosecond that a processor casts, roughly
    costs = (
        (n + m * size) * k / chip.device,
        count * loaded / chip.cache,
        rounds * loaded / chip.port,
        rounds * (2 * rows * columns * k * small / matrix + widening),
    )
    return max(costs) + 0.1 * sum(costs)


TILES = Tiles("matmul_quantized", default, candidates)
