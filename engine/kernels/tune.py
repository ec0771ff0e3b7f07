"""Chooses the tiles of every kernel by time on the GPU there is, and keeps them in `engine/kernels/tuned/<gpu>.json`.

    python -m engine.kernels.tune [--kernel NAME] [--minutes M]

All candidates are compiled first, in parallel, without the GPU; then each is timed (median, Triton's `do_bench`) on
random tensors and its result compared with the default tile's. The file is written at the end, as a whole: an
interrupted run leaves it as it was. What there was no time for keeps the choice it had. Ends with 2 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

import torch
import triton

from engine.kernels.catalogue import NAMES, kernel_file
from engine.kernels.chips import CHIPS
from engine.kernels.inspection import inspect, tile_text
from engine.kernels.tiles import Gpu, current_gpu
from engine.kernels.tuning import Choice, save, tune, untuned


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("no CUDA device: tiles are chosen by time on the GPU they are for. Run this there.", file=sys.stderr)
        return 2
    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set: there is nothing to time. Unset it and run again.", file=sys.stderr)
        return 2
    gpu = current_gpu()
    end = time.monotonic() + 60 * options.minutes
    print(f"{gpu.name} (sm_{gpu.capability}), at most {options.minutes:g} minutes", flush=True)
    choices = choose_all(options.kernel or NAMES, gpu, late=lambda: time.monotonic() > end)
    if not choices:
        print("the time was up before any choice was made: nothing is written", file=sys.stderr)
        return 1
    print(f"{len(choices)} choices in {save(gpu, choices)}")
    return 0


def choose_all(files: Sequence[str], gpu: Gpu, *, late: Callable[[], bool]) -> list[Choice]:
    """The choices for these kernel files, printed as they are made, until `late()`."""
    choices: list[Choice] = []
    for file in files:
        cases = list(kernel_file(file).cases())
        if not late():
            _compile(file, gpu, late)
        for choice in tune(cases, gpu, torch.device("cuda"), _median_s, late):
            choices.append(choice)
            print(_line(choice), flush=True)
        for kernel, shape in untuned(cases, gpu, choices):
            print(f"{kernel} {dict(shape)}: not tuned, the time was up", flush=True)
    return choices


def _compile(file: str, gpu: Gpu, late: Callable[[], bool]) -> None:
    """Fills Triton's cache on disk, on all cores."""
    if gpu.capability in CHIPS:
        for _ in inspect([file], [gpu.capability], all_tiles=True, processes=os.cpu_count() or 1):
            if late():
                return


def _median_s(call: Callable[[], object]) -> float:
    return 1e-3 * triton.testing.do_bench(call, return_mode="median")


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
