"""The load generator on a virtual clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experiments.load import Closed, JobError, Open, as_timed, play, poisson
from lang.function import function
from workloads.base import Job


@function
def count(s: Any, steps: int) -> None:
    """Stands in for a program; the runner of these tests never calls it."""


def job(name: str, steps: int = 1, **fields: Any) -> Job:
    return Job(program=count, args={"steps": steps}, name=name, **fields)


def test_closed_loop_keeps_parallel_programs_in_flight(step_runner: Any) -> None:
    jobs = [job(f"p{i}", steps=1 + i % 3) for i in range(20)]
    played = play(jobs, Closed(4), step_runner, step_runner.clock)
    assert step_runner.most_in_flight == 4
    assert [run.name for run in played.runs] == [f"p{i}" for i in range(20)]
    assert all(run.due == run.started_at for run in played.runs)
    assert played.finished_at - played.started_at == step_runner.steps


def test_open_loop_starts_every_program_at_the_first_step_after_it_is_due(step_runner: Any) -> None:
    due = (0.5, 0.6, 3.2, 9.0)
    played = play([job(f"p{i}", steps=5) for i in range(4)], Open(due), step_runner, step_runner.clock)
    assert [run.due for run in played.runs] == [100 + d for d in due]
    assert [run.started_at for run in played.runs] == pytest.approx([100.5, 101.5, 103.5, 109.0])


def test_a_slow_system_holds_no_arrival_back(step_runner: Any) -> None:
    due = tuple(0.1 * i for i in range(50))
    played = play([job(f"p{i}", steps=1000) for i in range(50)], Open(due), step_runner, step_runner.clock)
    assert step_runner.most_in_flight == 50
    assert max(run.started_at - run.due for run in played.runs) <= 1.0


def test_poisson_arrivals_have_the_rate_and_are_the_seeds_own() -> None:
    due = np.array(poisson(20_000, 4.0, 7).due)
    gaps = np.diff(due)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # exponential
    assert poisson(5, 4.0, 7).due == tuple(due[:5])
    assert poisson(5, 4.0, 8) != poisson(5, 4.0, 7)


def test_timed_jobs_are_due_at_their_own_times() -> None:
    jobs, load = as_timed([job("b", at=2.0), job("a", at=1.0)])
    assert [j.name for j in jobs] == ["a", "b"]
    assert load == Open((1.0, 2.0))
    with pytest.raises(ValueError, match="parallel=N or rate=R"):
        as_timed([job("a")])


@pytest.mark.parametrize("load", [Closed(8), Open((0.0, 0.0, 0.0, 0.0))])
def test_a_stage_begins_when_the_one_before_has_ended(step_runner: Any, load: Any) -> None:
    jobs = [job("late", stage=1), job("a", steps=3), job("b", steps=2), job("later", stage=2)]
    runs = {run.name: run for run in play(jobs, load, step_runner, step_runner.clock).runs}
    assert runs["a"].started_at == runs["b"].started_at == 100.0
    assert runs["late"].started_at == runs["late"].due == runs["a"].finished_at
    assert runs["later"].started_at == runs["late"].finished_at


def test_a_job_that_its_program_does_not_take_is_named(step_runner: Any) -> None:
    with pytest.raises(JobError, match=r"'broken'.*needs steps"):
        play([Job(program=count, args={}, name="broken")], Closed(1), step_runner, step_runner.clock)


def test_due_times_must_be_one_a_program(step_runner: Any) -> None:
    with pytest.raises(ValueError, match="1 due times for 2 programs"):
        play([job("a"), job("b")], Open((0.0,)), step_runner, step_runner.clock)
