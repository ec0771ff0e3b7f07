"""Chooses the tiles of every kernel by time on the GPU there is, and keeps them in `engine/kernels/tuned/<gpu>.json`.

    python -m engine.kernels.tune [--kernel NAME] [--minutes M]

Candidates are compiled on all cores ahead of the GPU, which times each (median, Triton's `do_bench`) on random tensors
and compares its result with the default tile's. The file is written at the end, as a whole: an interrupted run leaves
it as it was. What there was no time for keeps the choice it had. Ends with 2 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton

from engine.kernels.cases import Case
from engine.kernels.catalogue import NAMES, kernel_file
from engine.kernels.chips import CHIPS
from engine.kernels.inspection import inspect, tile_text
from engine.kernels.tiles import Gpu, current_gpu, key
from engine.kernels.tuning import Choice, Timer, save, tune, untuned

CUDA = torch.device("cuda")


def _median_s(call: Callable[[], object]) -> float:
    return 1e-3 * triton.testing.do_bench(call, return_mode="median")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: tiles are chosen by time on the GPU they are for. Run this there.", file=sys.stderr)
        return 2
    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: there is nothing to time. Unset it and run again.", file=sys.stderr)
        return 2
    gpu = current_gpu()
    print(f"{gpu.name} (sm_{gpu.capability}), at most {options.minutes:g} minutes", flush=True)
    choices = choose_all(options.kernel or NAMES, gpu, 60 * options.minutes)
    if not choices:
        print("the time was up before any choice was made: nothing is written", file=sys.stderr)
        return 1
    print(f"{len(choices)} choices in {save(gpu, choices)}")
    return 0


def choose_all(
    files: Sequence[str], gpu: Gpu, seconds: float, device: torch.device = CUDA, timer: Timer = _median_s
) -> list[Choice]:
    """The choices for these kernel files, printed as they are made. What a file leaves of its share of the time is the
    others'."""
    choices: list[Choice] = []
    end = time.monotonic() + seconds
    for at, file in enumerate(files):
        begin = time.monotonic()
        late = partial(_is_past, begin + (end - begin) / (len(files) - at))
        cases = list(kernel_file(file).cases())
        compiling = _Compiling(file, cases, gpu)
        try:
            for choice in tune(cases, gpu, device, timer, late, compiling.wait):
                choices.append(choice)
                print(_line(choice), flush=True)
        finally:
            compiling.stop()
        for kernel, shape in untuned(cases, gpu, choices):
            print(f"{kernel} {key(shape)}: not tuned, the time was up", flush=True)
    return choices


def _is_past(moment: float) -> bool:
    return time.monotonic() > moment


class _Compiling:
    """Fills Triton's cache on disk with all candidates of a file, on all cores, one case after the other."""

    def __init__(self, file: str, cases: Sequence[Case], gpu: Gpu) -> None:
        self._order = {case.label: at for at, case in enumerate(cases)}
        known = [gpu.capability] if gpu.capability in CHIPS else []
        self._findings = inspect([file], known, all_tiles=True, processes=max(2, os.cpu_count() or 1))
        self._seen = -1

    def wait(self, cases: Sequence[Case]) -> None:
        """Until all of these are compiled."""
        last = max(self._order[case.label] for case in cases)
        while self._seen <= last and (found := next(self._findings, None)):
            self._seen = self._order[found.case]

    def stop(self) -> None:
        self._findings.close()


def _line(choice: Choice) -> str:
    gain = sum(choice.default.seconds.values()) / sum(choice.chosen.seconds.values())
    refused = sum(bool(timed.refused) for timed in choice.timed)
    tried = f"{len(choice.timed)} tried" + (f", {refused} refused" if refused else "")
    return f"{choice.kernel} {choice.shape}: {tile_text(choice.tile)}: {gain:.2f}x the default's speed ({tried})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m engine.kernels.tune", description="Chooses tiles by time on this GPU.")
    parser.add_argument("--kernel", action="append", choices=NAMES, help="only this kernel file; may be repeated")
    parser.add_argument("--minutes", type=float, default=20.0, help="stop after this long and keep what was chosen")
    return parser


if __name__ == "__main__":
    sys.exit(main())
