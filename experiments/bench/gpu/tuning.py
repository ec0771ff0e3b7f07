"""Tiles measured on this GPU and stored in the tree (`--tune`), in a process of its own: this one then reads them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial

from engine.kernels import tune
from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.figure import Figure

NO_GPU = 2


def cases(setup: Setup) -> Iterator[Case]:
    yield Case("engine.kernels.tune", partial(run, setup))


def run(setup: Setup) -> Iterator[Figure]:
    """How many tiles were chosen. Raises Failed when tuning does."""
    if setup.rehearsal:  # nothing can be chosen by time here; that it says so is all there is to see
        if tune.main([]) != NO_GPU:
            raise Failed("tuning without a GPU went on")
        return
    left = max(0.1, (setup.deadline - time.time()) / 60)
    command = [sys.executable, "-m", "engine.kernels.tune", "--minutes", f"{left:.2f}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 * left + 60, check=False)
    (setup.folder / "tuning.txt").write_text(done.stdout, encoding="utf-8")
    if done.returncode:
        raise Failed(f"tuning ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}")
    yield Figure(name="lines of tuning", value=len(done.stdout.splitlines()), unit="lines", note="in tuning.txt")
