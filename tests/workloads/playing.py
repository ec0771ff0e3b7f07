"""Runs the jobs of a workload on a backend, all at a time, without a load generator."""

from __future__ import annotations

from collections.abc import Sequence

from lang import Runner
from lang.backends.base import Backend
from lang.runner import ProgramRun
from workloads.base import Job, Workload


def play(workload: Workload, backend: Backend, *, may_fail: bool = False) -> list[ProgramRun]:
    """may_fail: a program's error is the test's to look at."""
    return play_jobs(workload.jobs(), backend, may_fail=may_fail)


def play_jobs(jobs: Sequence[Job], backend: Backend, *, may_fail: bool = False) -> list[ProgramRun]:
    runner = Runner(backend)
    runs = [
        runner.start(
            job.program, job.args, name=job.name, conversation=job.conversation, sampling={"outputs": job.outputs}
        )
        for job in jobs
    ]
    while runner.active:
        runner.step()
    assert may_fail or not [run.error for run in runs if run.error]
    return runs
