"""Finding workloads by name and in files."""

import pytest

from workloads.mmlu import MMLU
from workloads.registry import WORKLOADS, WorkloadError, load_workload, workload_class

MINE = """
from dataclasses import dataclass
import lang
from workloads.base import Job, Workload

@lang.function
def ask(s, q):
    s += q + lang.gen("a")

@dataclass
class Mine(Workload):
    n: int
    word: str = "hi"

    def jobs(self):
        return [Job(program=ask, args={"q": self.word}, name=f"{i}") for i in range(self.n)]

class NoJobs(Workload):
    pass

class Other:
    pass
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_name_leads_to_a_workload(name):
    assert load_workload(name).jobs() == [], "made, but not loaded"


def test_a_workload_of_ones_own(mine):
    workload = load_workload(f"{mine}:Mine", {"n": 2})
    assert [job.args for job in workload.jobs()] == [{"q": "hi"}] * 2
    assert workload.warmup() == []
    assert workload.score([]) is None
    assert workload.data.origin == "sample"
    assert workload.count_tokens("a text of 20 letters") == 5


@pytest.mark.parametrize(
    ("spec", "kwargs", "message"),
    [
        ("mmul", {}, r"unknown workload 'mmul'; did you mean 'mmlu'\? available: .*mmlu, .*or path/to/mine.py"),
        ("mmlu", {"n_shot": 3}, r"'mmlu' has no parameter 'n_shot'; did you mean 'n_shots'\? it takes: data_dir, "),
        ("{mine}:Mine", {}, r"needs n: add workload.n="),
        ("{mine}:Mine", {"n": 1, "m": 2}, r"has no parameter 'm'; it takes: n, word"),
        ("{mine}:Mind", {}, r"has no class 'Mind'; did you mean 'Mine'\? workloads in it: Mine, NoJobs"),
        ("{mine}:NoJobs", {}, r"lacks jobs\(\): define it"),
        ("{mine}:Other", {}, r"Other isn't a workload: make it a subclass of workloads.base.Workload"),
        ("{mine}:ask", {}, r"ask isn't a workload"),
        ("{mine}", {}, r"doesn't say which class: .*mine.py:Mine"),
        ("{mine}x.py:Mine", {}, r"there is no file .*x.py"),
    ],
)
def test_what_cannot_be_made_is_explained(mine, spec, kwargs, message):
    with pytest.raises(WorkloadError, match=message):
        load_workload(spec.format(mine=mine), kwargs)


def test_a_file_that_cannot_be_imported_is_named(mine):
    mine.write_text("import nowhere_to_be_found")
    with pytest.raises(WorkloadError, match=r"mine.py can't be imported: ModuleNotFoundError"):
        load_workload(f"{mine}:Mine")


def test_importing_a_workload_needs_neither_torch_nor_an_engine():
    import subprocess
    import sys

    code = (
        "import sys, lang, workloads.mmlu, workloads.hellaswag; print({'torch', 'datasets', 'engine'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_class_behind_a_name():
    assert workload_class("mmlu") is MMLU
