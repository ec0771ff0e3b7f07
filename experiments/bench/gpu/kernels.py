"""Kernel benchmarks: each right on the inputs that it is timed on, beside its floor."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module

from experiments.bench.gpu.case import Case, Setup
from experiments.bench.gpu.figure import Figure

FAMILIES = ("attention", "shared", "elementwise", "sampling", "fixed", "products", "moe")
"""`kernels_<family>.py` each, what matters most first."""


def cases(setup: Setup) -> Iterator[Case]:
    for family in FAMILIES:
        yield from family_cases(family, setup)


def family_cases(family: str, setup: Setup) -> Iterator[Case]:
    """Its cases; one that raises if it can't be imported, so that the other families go on."""
    try:
        module = import_module(f"experiments.bench.gpu.kernels_{family}")
    except ImportError as error:
        reason = error

        def missing() -> list[Figure]:
            raise reason

        yield Case(family, missing)
        return
    for plan in module.plans(setup):
        yield plan.case(setup)
