"""run.py from its command line, on the tiny model: what it leaves, skips, refuses and survives."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

import run
from engine.log import Log
from experiments import compare, outputs

ROOT = Path(run.__file__).parent
MINE = """
from lang import function, gen
from workloads.base import DataSource, Job, Score, Workload

@function
def ask(s, question):
    s += "The same long beginning of every prompt, shared by all. " + question
    s += gen("answer", max_tokens=4, temperature=0, ignore_eos=True)
    if question.endswith("7"):
        raise RuntimeError("no sevens")

class Mine(Workload):
    data = DataSource("sample", note="made for a test")
    def __init__(self, n: int = 8) -> None:
        self.n = n
    def jobs(self):
        return [Job(program=ask, args={"question": f"What is {i}"}, name=f"q{i}") for i in range(self.n)]
    def warmup(self):
        return [Job(program=ask, args={"question": "Warm"}, name="w", namespace="warm-up")]
    def score(self, finished):
        return Score("accuracy", 1.0, len(finished))
"""
Invoke = Callable[..., int]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """run.py in this process, from an empty folder that holds mine.py; returns the exit code."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    for name in ("HYDRA_FULL_ERROR", "RADIXLAB_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        os.environ["HYDRA_FULL_ERROR"] = ""
        GlobalHydra.instance().clear()
        return run.main()

    return call


def runs(root: Path = Path("outputs")) -> list[Path]:
    return sorted(path.parent for path in root.glob("*/*/*/summary.json"))


def test_weights_in_8_bits_are_in_the_settings_and_the_report_of_their_run(invoke: Invoke) -> None:
    cell = ["workload=mine.py:Mine", "workload.n=2", "policy=lru", "engine.pool_tokens=4096", "engine.device=cpu"]
    assert invoke(*cell, "model.weights=int8") == 0
    (folder,) = runs()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["weights"] == config["resolved"]["weights"] == "int8"
    assert "weights: int8" in (folder / "report.html").read_text()
    assert invoke(*cell) == 0
    assert len(runs()) == 2, "other weights are another cell"
    assert invoke(*cell, "model.weights=int4") != 0
    assert len(runs()) == 2


def test_a_run_leaves_the_files_and_figures_it_promises(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    arguments = ["workload=mine.py:Mine", "policy=lru", "engine.pool_tokens=4096", "repeats=2", "parallel=3"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("data of Mine: sample (made for a test)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py", "outputs"]  # no litter of Hydra's
    (folder,) = runs(tmp_path / "outputs")
    assert re.fullmatch(r"Mine/lru/\d{8}-\d{6}-[0-9a-f]{10}", str(folder.relative_to(tmp_path / "outputs")))
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {*outputs.REQUIRED, *(f"plots/{name}.png" for name in ("latency", "load", "cache", "time"))}

    summary = json.loads((folder / "summary.json").read_text())
    promised = """workload policy system model device seed programs requests duration_s programs_per_s requests_per_s
        input_tokens cached_tokens output_tokens output_tokens_per_s hit_rate ttft_s tpot_s e2e_s program_latency_s
        evicted_tokens refetched_tokens recomputed_tokens preemptions errors peak_running pool_tokens overhead score
        data environment"""
    assert set(promised.split()) <= set(summary)
    assert set(summary["overhead"]) == {"schedule_s", "cache_s", "forward_s", "other_s"}
    assert {"git", "python", "torch", "triton", "cpu", "gpu"} <= set(summary["environment"])
    assert set(summary["ttft_s"]) == {"mean", "p50", "p90", "p99"}
    assert summary["ttft_s"]["p50"] > 0
    assert summary["ttft_s"]["p99"] is None
    assert summary["score"] is None  # random weights
    assert (summary["programs"], summary["errors"], summary["peak_running"]) == (16, 2, 3)

    requests = pd.read_parquet(folder / "requests.parquet")
    assert len(requests) == summary["requests"] == 16
    assert summary["output_tokens"] == requests["output_tokens"].sum() == 14 * 4
    admitted = requests[requests["admitted_s"].notna()]
    assert summary["hit_rate"] == pytest.approx(admitted["cached_tokens"].sum() / admitted["input_tokens"].sum())
    assert requests["finish_reason"].value_counts().to_dict() == {"length": 14, "abort": 2}
    assert requests.loc[requests["finish_reason"] == "abort", "e2e_s"].isna().all()
    for _, repeat in admitted.groupby("repeat"):  # each repeat starts from an empty cache
        assert repeat["cached_tokens"].iloc[0] == 0
        assert repeat["cached_tokens"].iloc[-1] > 10
    log = Log.read(folder / "events.parquet")
    assert {event.request for event in log.events if event.kind == "admit"} >= set(admitted["request"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["workload"]["name"] == "mine.py:Mine"
    assert config["resolved"]["pool_tokens"] == 4096

    report = (folder / "report.html").read_text()
    assert report.count("data:image/svg+xml;base64,") == 4
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//|@import|url\(""", report)
    assert "Built-in sample data" in report
    assert "Random weights" in report
    assert "2 of 16 programs failed" in report
    assert "python run.py workload=mine.py:Mine policy=lru" in report


def test_a_sweep_goes_on_where_it_was_stopped(invoke: Invoke, capsys: pytest.CaptureFixture[str]) -> None:
    cells = ("workload=mine.py:Mine", "workload.n=3", "engine.pool_tokens=4096")
    assert invoke("-m", *cells, "policy=lru") == 0
    (first,) = runs()
    assert invoke("-m", *cells, "policy=lru,fcfs") == 0  # as if the first try had been killed after lru
    assert f"skipped, finished already: {first}" in capsys.readouterr().out
    assert len(runs()) == 2
    assert invoke("-m", *cells, "policy=lru,fcfs") == 0
    assert len(runs()) == 2
    assert invoke("-m", *cells, "policy=lru", "force=true") == 0
    assert len(runs()) == 3
    assert not Path("multirun.yaml").exists()
    assert not Path("multirun").exists()


def test_cells_of_one_process_are_interleaved_and_compared(invoke: Invoke, capsys: pytest.CaptureFixture[str]) -> None:
    cells = "cells=[['policy=lru'],['policy=none'],['policy=lru','policy.eviction=lfu']]"
    assert (
        invoke("workload=mine.py:Mine", "workload.n=6", "rate=200", "repeats=2", "engine.pool_tokens=4096", cells) == 0
    )
    folders = runs()
    assert [path.parent.name for path in folders] == ["lru", "lru+eviction=lfu", "none"]
    (report,) = Path("outputs/compare").glob("*/report.html")
    assert "lru+eviction=lfu" in report.read_text()
    due = [pd.read_parquet(path / "requests.parquet").groupby("program")["arrival_s"].min() for path in folders]
    assert due[0].to_numpy() == pytest.approx(due[2].to_numpy())  # the same arrivals for every cell
    assert json.loads((folders[2] / "summary.json").read_text())["hit_rate"] == 0
    capsys.readouterr()

    assert compare.main([str(folders[0]), str(folders[2])]) == 0
    assert "programs_per_s" in capsys.readouterr().out
    assert compare.main([str(folders[0]), "nowhere"]) == 1
    assert "no such folder" in capsys.readouterr().err
    other = json.loads((folders[2] / "summary.json").read_text()) | {"model": "another"}
    (folders[2] / "summary.json").write_text(json.dumps(other))
    assert compare.main([str(folders[0]), str(folders[2])]) == 2
    assert "model: tiny and another" in capsys.readouterr().err
    assert compare.main([str(folders[0]), str(folders[2]), "--anyway"]) == 0
    (folders[2] / "requests.parquet").write_bytes(b"PAR1 cut short")
    assert compare.main([str(folders[0]), str(folders[2])]) == 1


def test_a_full_disk_at_the_end_costs_no_other_result(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = outputs._sync

    def full(path: Path) -> None:
        if "-fcfs" not in str(path) and "fcfs" in path.parts and path.name == "events.parquet":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        sync(path)

    monkeypatch.setattr(outputs, "_sync", full)
    arguments = ("workload=mine.py:Mine", "workload.n=3", "engine.pool_tokens=4096")
    assert invoke("-m", *arguments, "policy=lru,fcfs,fifo") == 1
    assert [path.parent.name for path in runs()] == ["fifo", "lru"]
    assert not Path("outputs/Mine/fcfs").exists()
    told = capsys.readouterr()
    assert "can't write events.parquet" in told.err
    assert "No space left" in told.err
    assert '"policy": "fcfs"' in told.out  # the summary isn't lost


BROKEN: dict[str, tuple[str, ...]] = {
    "policy=lur": ("unknown policy 'lur'", "did you mean 'lru'", "fcfs"),
    "policy.eviction=lfuu": ("lfuu", "did you mean 'lfu'"),
    "policy.evicton=lfu": ("unknown setting 'policy.evicton'", "did you mean 'eviction'"),
    "paralel=3": ("unknown setting 'paralel'", "did you mean 'parallel'"),
    "parallel=0": ("parallel=0", "1 or more"),
    "workload=mmluu": ("unknown workload 'mmluu'", "did you mean 'mmlu'", "path/to/mine.py:MyWorkload"),
    "workload=nothing.py:Mine": ("no file nothing.py",),
    "workload=mine.py:Yours": ("no class 'Yours'", "Mine"),
    "workload.data_dir=nowhere": ("nowhere", "no such file or folder"),
    "model=tinyy": ("unknown model 'tinyy'", "did you mean 'tiny'"),
    "model.path=./nowhere": ("nowhere", "no such folder"),
    "engine.cache=radx": ("radx", "did you mean 'radix'"),
    "engine.page_size=abc": ("page_size='abc'", "whole number"),
    "outputs=mine.py": ("mine.py is a file",),
    "nonsense": ("nonsense", "name=value"),
}


@pytest.mark.parametrize("argument", BROKEN)
def test_a_broken_argument_is_told_in_a_line_or_two(
    invoke: Invoke, argument: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert invoke(argument) == 1
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert len(told.err.strip().splitlines()) <= 2
    assert "Traceback" not in told.err
    for words in BROKEN[argument]:
        assert words in told.err
    assert not Path("outputs").exists()


def test_debug_shows_the_traceback(invoke: Invoke, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke("parallel=0", "debug=true") == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_run_in_which_every_program_fails_is_no_success(invoke: Invoke, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.py").write_text(MINE.replace('if question.endswith("7")', "if question"))
    assert invoke("workload=mine.py:Mine", "warmup=false", "engine.pool_tokens=4096") == 1
    assert "8 of 8 programs failed; the first: RuntimeError: no sevens" in capsys.readouterr().err
    assert len(runs()) == 1


def test_a_trained_model_has_a_score(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    models: Any = os.environ.get("RADIXLAB_MODELS")
    if not models:
        pytest.skip("RADIXLAB_MODELS isn't set: no trained model at hand")
    assert invoke("workload=mine.py:Mine", f"model.path={models}/stories260k", "engine.pool_tokens=4096") == 0
    (folder,) = runs()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["score"] == {"name": "accuracy", "value": 1.0, "n": 8}
    assert "Random weights" not in (folder / "report.html").read_text()
