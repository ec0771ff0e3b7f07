"""What this GPU can do at best, measured in the same run: copying memory, and a large matrix product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from engine.kernels.roofline import GPUS, Ceilings
from experiments.bench.gpu.case import Case, Setup
from experiments.bench.gpu.figure import Figure
from experiments.bench.gpu.timing import median_s

COPY_BYTES = 4 << 30
"""Read, and the same written."""
MATRIX = 8192
COPY, PRODUCT = "copy within device memory", "bf16 matrix product"


def cases(setup: Setup) -> Iterator[Case]:
    yield Case(COPY, lambda: [copy(setup)])
    yield Case(PRODUCT, lambda: [product(setup)])


def copy(setup: Setup) -> Figure:
    """Bytes read plus bytes written a second."""
    n = setup.pick(COPY_BYTES, 1 << 20) // 4
    source = torch.randint(-(2**31), 2**31 - 1, (n,), dtype=torch.int32, device=setup.device)
    target = torch.empty_like(source)
    seconds = median_s([lambda: target.copy_(source)], setup.device)
    if not torch.equal(source, target):
        raise RuntimeError("a copy within device memory came out different")
    sheet = _data_sheet(setup)
    return Figure(
        name=COPY,
        value=2 * n * 4 / seconds,
        unit="B/s",
        note="" if sheet is None else f"{2 * n * 4 / seconds / sheet.bytes_per_s:.0%} of the data sheet's",
    )


def product(setup: Setup) -> Figure:
    """Floating-point operations a second, on random numbers: zeros would run faster."""
    n = setup.pick(MATRIX, 64)
    sets = [[torch.randn(n, n, device=setup.device, dtype=torch.bfloat16) for _ in range(3)] for _ in range(2)]
    calls = [lambda a=a, b=b, c=c: torch.mm(a, b, out=c) for a, b, c in sets]
    seconds = median_s(calls, setup.device)
    sheet = _data_sheet(setup)
    return Figure(
        name=PRODUCT,
        value=2 * n**3 / seconds,
        unit="FLOP/s",
        note="" if sheet is None else f"{2 * n**3 / seconds / sheet.matrix_per_s:.0%} of the data sheet's",
    )


def measured(figures: Mapping[str, float], gpu: str) -> Ceilings | None:
    """Ceilings from this stage's figures by name; None before both are there."""
    rates = [figures.get(name) for name in (COPY, PRODUCT)]
    return None if None in rates else Ceilings(gpu, *(rate for rate in rates if rate is not None))


def _data_sheet(setup: Setup) -> Ceilings | None:
    if setup.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(setup.device)
    found = [gpu for gpu in GPUS if all(word in name for word in gpu.name.split() if word != "SXM")]
    return found[0] if found else None
