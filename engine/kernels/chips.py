"""What a processor of each kind of chip holds, and so how many blocks of a kernel run on it side by side.

From the CUDA C++ programming guide, table "Technical Specifications per Compute Capability". Triton's kernels are one
block of `32 * num_warps` threads a program.
"""

from __future__ import annotations

from typing import NamedTuple

from engine.kernels.tiles import Gpu

KIB = 1024
REGISTERS = 64 * KIB
"""32-bit registers of a processor, the same on all of these chips."""
THREAD_REGISTERS = 255
RESERVED = KIB
"""Bytes of shared memory that the driver takes for every block."""
QUARTERS = 4
TENSOR_COLUMNS = 512
"""Columns of tensor memory of a processor (from compute capability 100 on)."""


class Chip(NamedTuple):
    gpu: Gpu
    """One that stands for its kind, without a name so that no measured tiles are found for it."""
    example: str
    shared: int
    """Bytes of shared memory of a processor."""
    warps: int
    blocks: int
    """At most, on a processor."""

    @property
    def block_shared(self) -> int:
        """Bytes of shared memory that one block may have."""
        return self.shared - RESERVED


CHIPS = {
    80: Chip(Gpu("", 80, 108), "A100", 164 * KIB, 64, 32),
    86: Chip(Gpu("", 86, 80), "A10G", 100 * KIB, 48, 16),
    89: Chip(Gpu("", 89, 142), "L40S", 100 * KIB, 48, 24),
    90: Chip(Gpu("", 90, 132), "H100, H200", 228 * KIB, 64, 32),
    100: Chip(Gpu("", 100, 148), "B200", 228 * KIB, 64, 32),
}


def blocks_per_processor(chip: Chip, *, registers: int, shared: int, warps: int, tensor_columns: int = 0) -> int:
    """How many blocks of `warps` warps fit on a processor at once; 0 where not even one does.

    Registers are a thread's and are given out a warp at a time in pieces of 256, to as many warps on each of the four
    quarters of a processor; shared memory is a block's, in bytes, and is given out in pieces of 128.
    """
    if shared > chip.block_shared or registers > THREAD_REGISTERS:
        return 0
    of_warp = _up(32 * registers, 256)
    by_registers = REGISTERS // of_warp // QUARTERS * QUARTERS // warps if registers else chip.blocks
    by_shared = chip.shared // (_up(shared, 128) + RESERVED)
    by_tensor_memory = TENSOR_COLUMNS // tensor_columns if tensor_columns else chip.blocks
    return min(by_registers, by_shared, by_tensor_memory, chip.warps // warps, chip.blocks)


def _up(n: int, piece: int) -> int:
    return -(-n // piece) * piece
