"""Every snippet of docs/custom_workload.md does what it says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lang import Runner
from lang.backends.mock import MockBackend
from workloads.registry import load_workload

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "custom_workload.md").read_text()
SNIPPETS = re.findall(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))


def python_snippets():
    return [text for language, file, text in SNIPPETS if language == "python" and not file]


def test_the_example_is_shown_as_it_is():
    shown = {file: text for _, file, text in SNIPPETS if file}
    assert shown == {"examples/capitals.py": (ROOT / "examples" / "capitals.py").read_text()}


def test_the_example_runs_and_scores():
    workload = load_workload("examples/capitals.py:Capitals", {"shots": 3})
    workload.load()
    cities = {"Peru": " Lima", "Norway": " Bergen", "Cuba": " Havana"}
    runner = Runner(MockBackend(lambda prompt: next(city for country, city in cities.items() if country in prompt)))
    runs = [runner.start(job.program, job.args, name=job.name) for job in workload.jobs()]
    while runner.active:
        runner.step()
    assert workload.score(runs) == ("accuracy", pytest.approx(2 / 3), 3)


@pytest.mark.parametrize("snippet", python_snippets(), ids=lambda text: text.split("\n\n")[-1][:30])
def test_the_snippet_runs(snippet, tmp_path):
    names = {"__name__": "snippet"}
    exec(compile(snippet, "docs/custom_workload.md", "exec"), names)
    if "FromFile" in names:
        (tmp_path / "countries.jsonl").write_text('{"country": "Peru"}\n')
        workload = names["FromFile"](data_dir=str(tmp_path))
        workload.load()
        assert [job.name for job in workload.jobs()] == ["Peru"]
        assert workload.data.origin == "files"


def test_the_command_runs(tmp_path):
    (command,) = (text for language, _, text in SNIPPETS if language == "sh")
    words = [sys.executable, *command.split()[1:], f"outputs={tmp_path}", "engine.pool_tokens=1024"]
    environment = {name: value for name, value in os.environ.items() if name != "RADIXLAB_DATA"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["programs"] == 3
