"""Kernel benchmarks: each right on the inputs that it is timed on, beside its floor."""

from __future__ import annotations

from collections.abc import Iterator

from experiments.bench.gpu import kernels_elementwise
from experiments.bench.gpu.case import Case, Setup


def cases(setup: Setup) -> Iterator[Case]:
    for family in (kernels_elementwise,):
        for plan in family.plans(setup):
            yield plan.case(setup)
