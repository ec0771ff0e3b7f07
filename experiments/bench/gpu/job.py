"""Measuring one kernel: right first, then fast, beside its floor and what others take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from engine.kernels.roofline import Work
from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.figure import Figure, against_floor
from experiments.bench.gpu.timing import Call, median_s, n_rotating

TOLERANCE: Mapping[torch.dtype, float] = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}


class Job(NamedTuple):
    """A kernel with one set of inputs."""

    call: Call
    """Launches it."""
    check: Callable[[], float]
    """Launches it on a poisoned output and gives ||out - reference|| / ||reference||."""
    beside: Mapping[str, Call] = {}
    """The same job done by others."""


class Plan(NamedTuple):
    """One kernel benchmark."""

    name: str
    make: Callable[[], Job]
    """A fresh set of random inputs each time."""
    work: Work
    target: float | None = None
    """Least share of the floor."""
    tolerance: float = TOLERANCE[torch.bfloat16]
    note: str = ""

    def case(self, setup: Setup) -> Case:
        return Case(self.name, lambda: [measure(self, setup)])


def measure(plan: Plan, setup: Setup) -> Figure:
    """Raises Failed when the output is wrong."""
    jobs = [plan.make() for _ in range(n_rotating(plan.work.bytes, setup.device))]
    error = jobs[0].check()
    if not error < plan.tolerance:  # NaN isn't either
        raise Failed(f"wrong: relative error {error:.3g}, allowed {plan.tolerance:.3g}")
    seconds = median_s([job.call for job in jobs], setup.device)
    beside = {name: median_s([job.beside[name] for job in jobs], setup.device) for name in jobs[0].beside}
    return against_floor(
        plan.name,
        seconds,
        plan.work,
        setup.ceilings,
        target=plan.target,
        beside=beside,
        error=error,
        note=plan.note,
    )


def distance(out: Tensor, reference: Tensor) -> float:
    """||out - reference|| / ||reference|| in float64."""
    out, reference = out.double(), reference.double()
    return float((out - reference).norm() / reference.norm())


def poisoned(*tensors: Tensor) -> None:
    """Whatever isn't written stays wrong."""
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.dtype.itemsize > 1:
            tensor.fill_(float("nan"))
        else:
            tensor.view(torch.uint8).fill_(0x55)
