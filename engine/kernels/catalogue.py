"""Which kernel files there are. Inspection, tuning and the tests go through all of them."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Protocol, cast

from engine.kernels.cases import Case

NAMES = (
    "attention_extend",
    "attention_decode",
    "attention_shared_prefix",
    "attention_merge",
    "attention_fixed",
    "rms_norm",
    "rope_and_store",
    "silu_mul",
    "matmul_invariant",
    "matmul_quantized",
    "route",
    "moe",
    "sample",
)


class KernelFile(Protocol):
    def cases(self) -> Iterator[Case]: ...


def kernel_file(name: str) -> KernelFile:
    """The module `engine.kernels.<name>`. Raises ValueError for one that isn't in the catalogue."""
    if name not in NAMES:
        raise ValueError(f"unknown kernel {name!r}; available: {', '.join(NAMES)}")
    return cast(KernelFile, import_module(f"engine.kernels.{name}"))
