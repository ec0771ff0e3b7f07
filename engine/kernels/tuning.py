"""Times every tile that a kernel may run with on the GPU there is, and keeps the fastest that computes the same."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.runtime.errors import OutOfResources, PTXASError

from engine.kernels.cases import Case
from engine.kernels.tiles import TUNED, Gpu, Shape, Tile, file_name, key

Timer = Callable[[Callable[[], object]], float]
"""Seconds that a call takes."""
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""||result - default's|| / ||default's|| up to which a tile computes the same; other types must be equal."""
WORTH = 0.98
"""A tile replaces the default only if it takes less than this share of its time: noise decides nothing."""


class Timed(NamedTuple):
    tile: Tile
    seconds: Mapping[str, float]
    """By case; empty where the tile can't be used."""
    refused: str = ""
    """Why it can't."""

    @property
    def score(self) -> float:
        """Mean of the logarithms: every case of a shape counts the same."""
        return sum(map(math.log, self.seconds.values())) / len(self.seconds) if self.seconds else math.inf


class Choice(NamedTuple):
    kernel: str
    shape: str
    """As `tiles.key` writes it."""
    tile: Tile
    timed: Sequence[Timed]
    """All candidates, the default first."""

    @property
    def default(self) -> Timed:
        return self.timed[0]

    @property
    def chosen(self) -> Timed:
        return next(timed for timed in self.timed if timed.tile == self.tile)


def tune(
    cases: Sequence[Case],
    gpu: Gpu,
    device: torch.device,
    timer: Timer,
    late: Callable[[], bool],
    before: Callable[[Sequence[Case]], None] | None = None,
) -> Iterator[Choice]:
    """One choice for each kernel and shape among the cases, in the order of the cases, as they are made.

    `before` is told the cases of a choice before they are timed. Ends early once `late()`: a choice is made of all its
    candidates or not at all. Raises RuntimeError where a default tile computes what isn't a number.
    """
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        if case.capability <= gpu.capability:
            groups.setdefault(_kernel_and_shape(case), []).append(case)
    for (kernel, shape), same in groups.items():
        if late():
            return
        if before:
            before(same)
        timed: list[Timed] = []
        expected = [_result(case, same[0].tiles.default(gpu.capability, case.shape), device)[1] for case in same]
        for tile in _candidates(same[0], gpu.capability):
            if late():
                return
            timed.append(_timed(same, tile, expected, device, timer))
        yield Choice(kernel, shape, _best(timed), timed)


def _kernel_and_shape(case: Case) -> tuple[str, str]:
    return case.tiles.kernel, key(case.shape)


def _candidates(case: Case, capability: int) -> list[Tile]:
    """The default first, nothing twice."""
    default = case.tiles.default(capability, case.shape)
    found = [default]
    for tile in case.tiles.candidates(capability, case.shape):
        if tile not in found:
            found.append(tile)
    return found


def _best(timed: Sequence[Timed]) -> Tile:
    default = timed[0]
    fastest = min(timed, key=lambda one: one.score)
    return fastest.tile if fastest.score < default.score + math.log(WORTH) else default.tile


def _timed(
    cases: Sequence[Case], tile: Tile, expected: Sequence[list[Tensor]], device: torch.device, timer: Timer
) -> Timed:
    seconds = {}
    for case, default in zip(cases, expected, strict=True):
        try:
            call, result = _result(case, tile, device)
        except Exception as error:
            if not _is_of_the_tile(error):
                raise
            return Timed(tile, {}, f"{case.label}: {type(error).__name__}: {str(error).strip().splitlines()[-1]}")
        if wrong := difference(result, default):
            return Timed(tile, {}, f"{case.label}: {wrong}")
        seconds[case.label] = timer(call)
    return Timed(tile, seconds)


def _is_of_the_tile(error: Exception) -> bool:
    """It can't be compiled or doesn't fit; what else goes wrong may have left the GPU unusable."""
    expected = isinstance(error, OutOfResources | PTXASError | triton.CompilationError)
    return expected or "PassManager::run failed" in str(error)


def _result(case: Case, tile: Tile, device: torch.device) -> tuple[Callable[[], object], list[Tensor]]:
    """A call on tensors of its own, the same for every tile, and what its first run computed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        call = case.make(device)
    result = [tensor.clone() for tensor in _tensors(call(tile))]
    if not result:
        raise RuntimeError(f"{case.label}: its call gives no tensor, so nothing can be compared")
    return lambda: call(tile), result


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for part in result:
            yield from _tensors(part)


def difference(result: Sequence[Tensor], default: Sequence[Tensor]) -> str:
    """What tells a result from the default tile's; empty where they are the same."""
    for one, other in zip(result, default, strict=True):
        if one.dtype not in TOLERANCE:
            if not torch.equal(one, other):
                return f"{one.dtype} results differ from the default tile's"
            continue
        exact, near = other.double(), one.double()
        if not exact.isfinite().all():
            raise RuntimeError("the default tile computes what isn't a number; nothing can be compared with that")
        error = float((near - exact).norm() / exact.norm().clamp_min(1e-30))
        if not error <= TOLERANCE[one.dtype]:
            return f"differs from the default tile's result by {error:.1e}, more than {TOLERANCE[one.dtype]:.0e}"
    return ""


def save(gpu: Gpu, choices: Sequence[Choice], folder: Path = TUNED) -> Path:
    """Writes them beside the older ones of other kernels and shapes: the file changes as a whole or not at all."""
    path = folder / f"{file_name(gpu.name)}.json"
    tiles: dict[str, dict[str, Any]] = {}
    if path.is_file():
        tiles = json.loads(path.read_text(encoding="utf-8"))["tiles"]
    for choice in choices:
        tiles.setdefault(choice.kernel, {})[choice.shape] = _entry(choice)
    contents = {
        "gpu": gpu._asdict(),
        "tiles": {kernel: dict(sorted(of_kernel.items())) for kernel, of_kernel in sorted(tiles.items())},
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(contents, indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
    return path


def _entry(choice: Choice) -> dict[str, Any]:
    return {
        **choice.tile._asdict(),
        "us": _microseconds(choice.chosen),
        "default_us": _microseconds(choice.default),
        "default": choice.default.tile._asdict(),
        "candidates": len(choice.timed),
        "date": datetime.now(UTC).date().isoformat(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def _microseconds(timed: Timed) -> dict[str, float]:
    return {case: round(1e6 * seconds, 2) for case, seconds in timed.seconds.items()}


def untuned(cases: Sequence[Case], gpu: Gpu, choices: Sequence[Choice]) -> list[tuple[str, Shape]]:
    """Kernels and shapes among the cases that no choice was made for."""
    made = {(choice.kernel, choice.shape) for choice in choices}
    left = {_kernel_and_shape(case): case.shape for case in cases if case.capability <= gpu.capability}
    return [(name, shape) for (name, text), shape in left.items() if (name, text) not in made]
