"""Everything that only a GPU can prove, measured in one command:

    python -m experiments.bench.gpu [--only STAGE ...] [--budget MINUTES] [--tune]
    python -m experiments.bench.gpu --dry-run      # the same on a CPU, with tiny shapes: shows that every line runs

Ceilings of this GPU, the kernel tests on it, kernel and engine benchmarks beside their floors and targets, transformers
on the same weights, greedy tokens against the CPU. Results: experiments/results/<gpu>/<date>/results.json and .md,
written after every figure.

This process holds no device. It starts a worker that does, watches its stages' time limits, and starts another one for
the next stage when a worker hangs or dies. Exit code: 0; 1 when something failed (a missed target is a result, not a
failure); 2 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.bench.gpu.report import MARKDOWN, REHEARSAL, Results
from experiments.bench.gpu.stages import STAGES

NO_GPU = 2
ROOT = Path("experiments/results")
BUDGET_MINUTES = 9.5
GRACE_S = 20.0
"""A case may run over its stage's limit by this much before the worker is killed."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    deadline = time.time() + 60 * options.budget
    with tempfile.TemporaryDirectory(prefix="radixlab-gpu-") as private:
        root = options.out or (Path(private) / "results" if options.dry_run else ROOT)
        folder = watch(options, root, Path(private) / "pointer", deadline, console)
        if folder is None:
            return NO_GPU
        return conclude(Results(folder), options, console)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:

    names = [stage.name for stage in STAGES]
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="STAGE", help=f"some of {', '.join(names)}")
    parser.add_argument("--budget", type=float, default=BUDGET_MINUTES, help="minutes for everything (default 9.5)")
    parser.add_argument("--tune", action="store_true", help="measure tiles first; with a budget of some minutes more")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on the CPU; no result is kept without --out")
    parser.add_argument("--out", type=Path, help=f"folder of <gpu>/<date>/ (default {ROOT})")
    options = parser.parse_args(arguments)
    wanted = set(options.only or names) | {"ceilings"}
    options.stages = [name for name in names if name in wanted and (name != "tune" or options.tune or options.dry_run)]
    return options


def watch(options: argparse.Namespace, root: Path, pointer: Path, deadline: float, console: Console) -> Path | None:
    """Runs workers until every stage had its turn or the time is up. The folder of the results; None: no GPU."""
    folder: Path | None = None
    before = [*options.stages, ""]
    while True:
        worker = start(options, root, pointer, folder, deadline)
        try:
            why = wait(worker, pointer, deadline)
        finally:
            kill(worker)
        if worker.returncode == NO_GPU:
            return None
        folder = pointed(pointer)
        if folder is None:
            raise SystemExit(f"the worker ended before it began ({why})")
        results = Results(folder)
        running = [name for name in options.stages if results.status(name) == "running"]
        for name in running:
            console.print(f"  {name}: {why}", style="red", markup=False)
            results.end(name, time.time(), why)
        waiting = [name for name in options.stages if results.status(name) == "waiting"]
        if not waiting:
            return folder
        late = time.time() >= deadline or worker.returncode == 0
        if late or len(waiting) == len(before):
            for name in waiting:
                results.begin(name, time.time(), 0.0)
                results.end(name, time.time(), f"not run: {'the time was up' if late else why}")
            return folder
        before = waiting


def start(
    options: argparse.Namespace, root: Path, pointer: Path, folder: Path | None, deadline: float
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.bench.gpu.worker", "--pointer", str(pointer), "--root", str(root)]
    command += ["--deadline", repr(deadline), "--stages", *options.stages]
    command += ["--tune"] if options.tune else []
    command += ["--dry-run"] if options.dry_run else []
    command += [] if folder is None else ["--resume", str(folder)]
    environment = dict(os.environ)
    if options.dry_run:  # Triton reads it when the kernels are imported
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, start_new_session=True)


def wait(worker: subprocess.Popen[bytes], pointer: Path, deadline: float) -> str:
    """Waits for the worker. What to say of the stage that it was in, should it have been in one."""
    while worker.poll() is None:
        time.sleep(0.2)
        folder, now = pointed(pointer), time.time()
        stages = Results(folder).content["stages"] if folder is not None else {}
        for stage in stages.values():
            if stage["status"] == "running" and now > stage["begun"] + stage["limit_s"] + GRACE_S:
                return f"stopped after {now - stage['begun']:.0f} s: it hung, or one case took too long"
        if now > deadline + GRACE_S:
            return "stopped: the time was up"
    return f"the process died, exit code {worker.returncode}"


def kill(worker: subprocess.Popen[bytes]) -> None:
    """Ends the worker and what it started (the tests)."""
    if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def pointed(pointer: Path) -> Path | None:
    return Path(pointer.read_text(encoding="utf-8")) if pointer.is_file() else None


def conclude(results: Results, options: argparse.Namespace, console: Console) -> int:
    wrong = results.wrong
    for line in wrong:
        console.print(f"wrong: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    if options.dry_run:
        console.print(REHEARSAL, markup=False)
    for line in [] if options.dry_run else results.missed:
        console.print(f"missed: {line}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if not options.dry_run or options.out:
        console.print(f"written to {results.path} and {MARKDOWN}", markup=False, highlight=False, soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
