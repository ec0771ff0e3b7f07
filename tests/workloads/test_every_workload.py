"""Every workload, on its built-in sample: what it promises the harness, on a mock and through run.py."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import conf
import run
from lang.backends.mock import MockBackend
from tests.workloads.every import CASES, IDS, SMALL
from tests.workloads.playing import play_jobs
from workloads.base import Job, Workload
from workloads.registry import WORKLOADS, load_workload


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def made(name: str, settings: dict[str, Any], outputs: str = "auto", random_weights: bool = True) -> Workload:
    workload = load_workload(name, settings)
    workload.choose_outputs(outputs, random_weights)
    workload.load()
    return workload


def plain(jobs: Sequence[Job]) -> str:
    """Their arguments as text, without the addresses of objects that all jobs of a workload share."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr([dict(job.args) for job in jobs]))


def test_every_workload_is_tried() -> None:
    assert SMALL.keys() == WORKLOADS.keys()


@pytest.mark.parametrize("name", WORKLOADS)
def test_its_settings_are_in_its_configuration(name: str) -> None:
    path = Path(next(iter(conf.__path__))) / "workload" / f"{name}.yaml"
    settings: Any = OmegaConf.to_container(OmegaConf.load(path))
    settings = settings.get("workload", settings)
    assert settings.pop("name") == name
    assert load_workload(name, settings).jobs() == []


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_its_jobs_are_the_same_each_time_and_have_names_of_their_own(name: str, settings: dict[str, Any]) -> None:
    one, other = made(name, settings), made(name, settings)
    jobs = one.jobs()
    assert jobs
    assert [job.name for job in jobs] == [job.name for job in other.jobs()]
    assert len({job.name for job in jobs}) == len(jobs)
    assert plain(jobs) == plain(other.jobs())
    assert one.data == other.data
    assert one.data.origin in ("sample", "made")
    assert one.data.note
    assert all(job.namespace for job in one.warmup())


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_all_its_programs_finish_with_all_outputs_that_it_serves(name: str, settings: dict[str, Any]) -> None:
    for outputs in made(name, settings).served_outputs:
        workload = made(name, settings, outputs)
        assert workload.outputs == outputs
        assert {job.outputs for job in workload.jobs()} == {outputs}
        if outputs == "free":
            continue  # a mock's "ok" is no answer that every program can go on from
        for one in play_jobs([*workload.warmup(), *workload.jobs()], MockBackend(), may_fail=True):
            assert one.status == "done", one.error


@pytest.mark.parametrize("name", WORKLOADS)
def test_outputs_that_it_does_not_serve_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="isn't served by this workload; allowed: auto"):
        load_workload(name, SMALL[name][0]).choose_outputs("other", random_weights=True)
    trained = load_workload(name, SMALL[name][0])
    trained.choose_outputs("auto", random_weights=False)
    assert trained.outputs == "free"


@pytest.mark.parametrize(("name", "settings"), CASES, ids=IDS)
def test_run_py_measures_it(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [f"++workload.{key}={json.dumps(value)}" for key, value in settings.items()]
    arguments = [f"workload={name}", "policy=lru", "parallel=4", "engine.device=cpu", "warmup=false", *given]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    os.environ["HYDRA_FULL_ERROR"] = ""
    GlobalHydra.instance().clear()
    assert run.main() == 0
    (path,) = tmp_path.glob("outputs/*/*/*/summary.json")
    summary = json.loads(path.read_text())
    assert summary["workload"] == name
    assert summary["errors"] == 0
    assert summary["outputs"] == made(name, settings).outputs
    assert summary["data"]["source"] in ("sample", "made")
    assert summary["programs"] == len(made(name, settings).jobs())
    assert 0 <= summary["hit_rate"] < 1
