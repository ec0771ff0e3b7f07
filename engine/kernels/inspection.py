"""Compiles the typical uses of every kernel file for chips that needn't be there, and says what is wrong with them."""

from __future__ import annotations

import functools
import json
import multiprocessing
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch

from engine.kernels.cases import Case
from engine.kernels.catalogue import kernel_file
from engine.kernels.chips import CHIPS, KIB, Chip
from engine.kernels.compile import Compiled, compile_launch
from engine.kernels.launch import Launch, recording
from engine.kernels.tiles import TUNED, Gpu, Tile, choose, key, target, tuned

DEFAULT, MEASURED, CANDIDATE = "default", "measured", "candidate"


class Finding(NamedTuple):
    """One launch of one case, compiled for one chip."""

    file: str
    """The kernel file."""
    case: str
    capability: int
    choice: str
    """`default`, `measured on <gpu>`, or `candidate`."""
    tile: str
    """E.g. `BLOCK_M=128 BLOCK_N=64, 8 warps, 2 stages`."""
    code: Compiled | None
    """None where it doesn't compile."""
    problems: tuple[str, ...]


class _Job(NamedTuple):
    file: str
    at: int
    """Which of the file's `cases()`."""
    gpu: Gpu
    choice: str
    tile: Tile | None
    """None: the one that the launcher chooses."""


def inspect(
    files: Sequence[str], chips: Sequence[int], *, all_tiles: bool, processes: int
) -> Generator[Finding, None, None]:
    """All cases of these kernel files with the tiles that are chosen on these chips (compute capabilities) and, with
    `all_tiles`, with all that tuning may choose; in an order that is always the same."""
    jobs = [job for file in files for job in _jobs(file, chips, all_tiles)]
    if processes == 1 or len(jobs) < 2:
        for job in jobs:
            yield from _inspected(job)
        return
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        for findings in pool.map(_inspected, jobs):
            yield from findings
    finally:
        pool.shutdown(cancel_futures=True)  # whoever has seen enough needn't wait for the rest


def _jobs(file: str, chips: Sequence[int], all_tiles: bool) -> Iterator[_Job]:
    for at, case in enumerate(_cases(file)):
        for capability in chips:
            if capability < case.capability:
                continue
            gpu = CHIPS[capability].gpu
            yield _Job(file, at, gpu, DEFAULT, None)
            for known in _tuned_gpus():
                if known.capability == capability and key(case.shape) in tuned(known.name).get(case.tiles.kernel, {}):
                    yield _Job(file, at, known, f"{MEASURED} on {known.name}", None)
            for tile in case.tiles.candidates(capability, case.shape) if all_tiles else ():
                yield _Job(file, at, gpu, CANDIDATE, tile)


@functools.cache
def _cases(file: str) -> list[Case]:
    return list(kernel_file(file).cases())


@functools.cache
def _tuned_gpus() -> list[Gpu]:
    return [Gpu(**json.loads(path.read_text(encoding="utf-8"))["gpu"]) for path in sorted(TUNED.glob("*.json"))]


def _inspected(job: _Job) -> list[Finding]:
    case = _cases(job.file)[job.at]
    chip = CHIPS[job.gpu.capability]

    def finding(tile: Tile | None, code: Compiled | None, *problems: str) -> Finding:
        text = tile_text(tile) if tile else "?"
        return Finding(job.file, case.label, job.gpu.capability, job.choice, text, code, problems)

    try:
        with target(job.gpu), recording() as launches:
            case.make(torch.device("meta"))(job.tile)
    except Exception as error:
        return [finding(job.tile, None, f"its launcher fails on tensors of the device meta: {_brief(error)}")]
    findings = []
    for launch in launches:
        try:
            code = compile_launch(launch, chip)
        except Exception as error:
            findings.append(finding(launch.tile, None, f"doesn't compile: {_brief(error)}"))
        else:
            findings.append(finding(launch.tile, code, *code_problems(code, chip, chosen=job.choice != CANDIDATE)))
    if wrong := list(_case_problems(case, job, launches, [found.code for found in findings])):
        findings.append(finding(job.tile, None, *wrong))
    return findings


def code_problems(code: Compiled, chip: Chip, *, chosen: bool) -> list[str]:
    """What is wrong with compiled code. A candidate may spill: tuning won't take it if that is slow."""
    problems = []
    if chosen and (code.spills or code.stack):
        problems.append(
            f"spills: {code.spills} instructions, {code.stack} bytes a thread; take smaller tiles or more warps"
        )
    if code.shared > chip.block_shared:
        problems.append(
            f"needs {code.shared / KIB:.1f} KiB of shared memory, a block may have {chip.block_shared // KIB}"
        )
    elif not code.blocks:
        problems.append(f"not one block fits on a processor: {code.registers} registers a thread are too many")
    if code.dots and not code.matrix:
        problems.append(f"{code.dots} matrix products and no matrix instruction")
    if code.matrix and not code.dots:
        problems.append("matrix instructions, though all its products are of float32, which they would round")
    return problems


def _case_problems(
    case: Case, job: _Job, launches: Sequence[Launch], codes: Sequence[Compiled | None]
) -> Iterator[str]:
    with target(job.gpu):
        tile = job.tile or choose(case.tiles, case.shape)
    if not any(launch.tile == tile for launch in launches):
        yield f"nothing was launched with {tile_text(tile)}, which is the tile for its shape {key(case.shape)}"
    if case.matrix and not any(code is None or code.dots for code in codes):
        yield "it should have matrix products and has none"
    capability = job.gpu.capability
    if job.choice == DEFAULT and tile not in case.tiles.candidates(capability, case.shape):
        yield f"the default {tile_text(tile)} isn't among its candidates"


def tile_text(tile: Tile) -> str:
    constants = " ".join(f"{name}={value}" for name, value in tile.constants.items())
    return f"{constants}, {tile.num_warps} warps, {tile.num_stages} stages".lstrip(", ")


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' | '.join(lines[-3:])}"[:600]
