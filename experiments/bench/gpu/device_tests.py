"""What only a GPU can prove and the tests of kernels, executor and model, on this device, by pytest in a process of
its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

from experiments.bench.gpu.case import Case, Failed, Setup
from experiments.bench.gpu.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[3]
KERNELS = "tests/engine/kernels"
SUITES = (
    "tests/gpu",
    KERNELS,
    "tests/engine/executor/test_cuda_executor.py",
    "tests/engine/executor/test_gpu_sampler.py",
    "tests/engine/models/test_llama_gpu.py",
)
LEFT_OUT = ("cpu", "test_compiled.py", "test_inspection.py", "test_tuning.py")
"""Of the kernels' tests: what they test needs no GPU, or the pinned compiler."""
WORKERS = 8
"""Most of a test on a GPU is compiling its kernels, so processes help; they share the device."""
TAIL = 600
"""Characters kept of a failed test's message, and of its traceback."""


def cases(setup: Setup) -> Iterator[Case]:
    yield Case("tests on the device", partial(run_tests, setup))


def run_tests(setup: Setup) -> Iterator[Figure]:
    """How many passed. Raises Failed with the names and messages of those that didn't."""
    report = setup.folder / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "--no-header", "-vv", f"--junitxml={report}", "-p", "no:cacheprovider"]
    # A rehearsal shows that the tests are found, collected and run; all of them run in `make test`.
    command += [*SUITES, *(f"--ignore={KERNELS}/{name}" for name in LEFT_OUT)] if not setup.rehearsal else ["tests/gpu"]
    if not setup.rehearsal and find_spec("xdist") is not None:
        command += ["-n", str(min(WORKERS, os.cpu_count() or 1))]
    environment = dict(os.environ) | ({"RADIXLAB_REHEARSAL": "1"} if setup.rehearsal else {})
    left = max(1.0, setup.deadline - time.time())
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=left, check=False
        )
    except subprocess.TimeoutExpired as error:
        output = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
        yield Figure(name="tests passed before the time was up", value=output.count("PASSED"), unit="tests")
        failed = [line for line in output.splitlines() if "FAILED" in line or "ERROR" in line]
        raise Failed(
            "\n".join([*failed, f"not done after {left:.0f} s; the last of the output:", output[-TAIL:]])
        ) from None
    counts, failures = read_report(report)
    report.unlink(missing_ok=True)
    if counts is None:
        raise Failed(f"pytest gave no report (exit code {done.returncode}):\n{(done.stdout + done.stderr)[-4000:]}")
    ran = counts["tests"] - counts["skipped"]
    passed = ran - counts["failures"] - counts["errors"]
    note = f"{counts['skipped']} skipped; {', '.join(command[6:])}"
    yield Figure(
        name=f"tests passed of {ran}", value=passed, unit="tests", target=max(ran, 1), aim="at least", note=note
    )
    if failures or done.returncode not in (0,):
        raise Failed("\n\n".join(failures) or f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}")


def read_report(path: Path) -> tuple[dict[str, int] | None, list[str]]:
    """Counts of a JUnit report, and name and message of each test that failed. None: there is none."""
    if not path.is_file():
        return None, []
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    failures = []
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in counts:
            counts[name] += int(suite.get(name, 0))
        for test in suite.iter("testcase"):
            for bad in [*test.findall("failure"), *test.findall("error")]:
                message = re.sub(r"\s+", " ", bad.get("message") or "")[:TAIL]
                where = f"{test.get('classname')}::{test.get('name')}"
                failures.append(f"{where}: {message}\n{(bad.text or '')[-TAIL:]}".strip())
    return counts, failures
