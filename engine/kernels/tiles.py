"""Which tile a kernel uses: block sizes, warps and pipeline stages by kernel, GPU and shape.

Measured choices lie in `tuned/<gpu>.json` (written by `python -m engine.kernels.tune` on that GPU, kept in the tree).
Where a GPU or a shape isn't there, the kernel's own default for that kind of chip is taken: nothing is tuned while a
request waits.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

TUNED = Path(__file__).parent / "tuned"
Shape = Mapping[str, int | str]
"""What a choice may depend on, e.g. {"head_dim": 128, "dtype": "bfloat16", "group": 4}."""


class Tile(NamedTuple):
    constants: Mapping[str, int]
    """Compile-time parameters of the kernel, e.g. {"BLOCK_M": 128, "BLOCK_N": 64}."""
    num_warps: int = 4
    num_stages: int = 2


class Tiles(NamedTuple):
    """What a kernel may run with."""

    kernel: str
    default: Callable[[int, Shape], Tile]
    """(compute capability as 86 or 90, shape) -> a tile that fits every chip of that capability."""
    candidates: Callable[[int, Shape], Sequence[Tile]]
    """What tuning tries and inspection compiles; the default is one of them."""


class Gpu(NamedTuple):
    name: str
    """As the driver gives it, e.g. NVIDIA H200."""
    capability: int
    """80, 86, 89, 90, 100, ..."""
    processors: int
    """Streaming multiprocessors."""


UNKNOWN = Gpu("", 90, 132)
"""Stands in where there is no GPU: under the interpreter."""
_target: Gpu | None = None


@contextmanager
def target(gpu: Gpu) -> Iterator[None]:
    """In here every launcher chooses as on that GPU."""
    global _target
    before, _target = _target, gpu
    try:
        yield
    finally:
        _target = before


def current_gpu() -> Gpu:
    """The GPU that launchers choose for: the target, else the device there is."""
    return _target or _present()


@functools.cache
def _present() -> Gpu:
    if not torch.cuda.is_available():
        return UNKNOWN
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, 10 * properties.major + properties.minor, properties.multi_processor_count)


def key(shape: Shape) -> str:
    """`{"head_dim": 128, "dtype": "bfloat16"}` -> `dtype=bfloat16,head_dim=128`."""
    return ",".join(f"{name}={value}" for name, value in sorted(shape.items()))


def choose(tiles: Tiles, shape: Shape) -> Tile:
    """The tile for a shape on the current GPU: the measured one, else the kernel's default."""
    return _chosen(tiles, current_gpu(), tuple(sorted(shape.items())))


@functools.cache
def _chosen(tiles: Tiles, gpu: Gpu, items: tuple[tuple[str, int | str], ...]) -> Tile:
    shape = dict(items)
    stored = tuned(gpu.name).get(tiles.kernel, {}).get(key(shape))
    return tiles.default(gpu.capability, shape) if stored is None else stored


@functools.cache
def tuned(gpu_name: str) -> Mapping[str, Mapping[str, Tile]]:
    """Kernel -> shape key -> tile, as measured on that GPU; empty when nobody has."""
    path = TUNED / f"{file_name(gpu_name)}.json"
    if not gpu_name or not path.is_file():
        return {}
    contents = json.loads(path.read_text(encoding="utf-8"))
    return {
        kernel: {
            shape: Tile(entry["constants"], entry["num_warps"], entry["num_stages"]) for shape, entry in choices.items()
        }
        for kernel, choices in contents["tiles"].items()
    }


def file_name(gpu_name: str) -> str:
    """`NVIDIA H200` -> `nvidia_h200`."""
    return "".join(c if c.isalnum() else "_" for c in gpu_name.lower()).strip("_")
