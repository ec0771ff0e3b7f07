"""Compiles a recorded launch for any NVIDIA chip, without one: exactly the code that a real launch would compile.

Triton asks its driver which chip it compiles for. Here a stand-in answers, so that everything else (which argument is
a constant, which pointer is aligned, the cache on disk) is Triton's own launch path up to the launch itself.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from engine.kernels import sass
from engine.kernels.chips import RESERVED, Chip, blocks_per_processor
from engine.kernels.launch import Launch

_DOT = re.compile(r"tt\.dot(?:_scaled)? .*?(?:inputPrecision = (\w+))?[^:]*: tensor<[0-9x]+x(\w+)[,>]")


class Compiled(NamedTuple):
    """One launch on one chip. All of it is known before anything runs."""

    kernel: str
    """The `@triton.jit` function's name."""
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread that aren't in registers."""
    spills: int
    """Instructions that move registers to memory or back."""
    shared: int
    """Bytes of a block, static and dynamic."""
    blocks: int
    """How many run on a processor at once; 0: it can't be launched."""
    matrix: dict[str, int]
    """Matrix instructions in the code by name."""
    copies: dict[str, int]
    """Asynchronous copies to shared memory in the code by name."""
    wide: int
    """Device memory instructions of at least 16 bytes a thread."""
    narrow: int
    """Those of less."""
    dots: int
    """Matrix products in the source that a matrix unit can do (float32 at full precision isn't one)."""


class _Elsewhere:
    """Answers for a driver on a machine that has the chip."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_launch(launch: Launch, chip: Chip) -> Compiled:
    """Compiles it for that chip. Raises what Triton raises, RuntimeError in a process that interprets kernels."""
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET=1 is set: interpreted kernels can't be compiled; use a process without it")
    before = driver._active
    driver.set_active(_Elsewhere(chip.gpu.capability))
    try:
        kernel = launch.kernel.warmup(
            *launch.args,
            grid=launch.grid,
            **launch.constants,
            num_warps=launch.tile.num_warps,
            num_stages=launch.tile.num_stages,
        )
    finally:
        driver.set_active(before)
    code = sass.read(kernel.asm["cubin"])
    reserved = RESERVED if chip.gpu.capability >= 90 else 0  # counted by cuobjdump as the block's own from there on
    shared = max(0, code.static_shared - reserved) + kernel.metadata.shared
    return Compiled(
        kernel=launch.kernel.__name__,
        registers=code.registers,
        stack=code.stack,
        spills=code.spills,
        shared=shared,
        blocks=blocks_per_processor(
            chip,
            registers=code.registers,
            shared=shared,
            warps=kernel.metadata.num_warps,
            tensor_columns=kernel.metadata.tmem_size or 0,
        ),
        matrix=code.matrix,
        copies=code.copies,
        wide=code.wide,
        narrow=code.narrow,
        dots=_matrix_products(kernel.asm["ttir"]),
    )


def _matrix_products(ttir: str) -> int:
    """Of the intermediate code, those that a matrix unit can do."""
    return sum(kind != "f32" or "tf32" in precision for precision, kind in _DOT.findall(ttir))
