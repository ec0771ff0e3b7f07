"""The benchmark of the workloads, on the smallest models and the built-in samples, and the table that is made of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import workload_table, workloads
from experiments.bench.workload_cases import CASES, UNIQUE
from experiments.bench.workload_runs import Case, Systems, load, measure, run
from workloads.registry import WORKLOADS

ROOT = Path(__file__).resolve().parents[3]
SHARING = Case("mmlu", ("workload=mmlu", "model=tiny", "workload.subjects=1", "workload.limit=6"), programs=6, alone=2)
PARTS = ("workload.n_documents=1", "workload.n_segments=3", "workload.segment_tokens=100", "workload.n_questions=3")
JOINED = Case("long_doc_qa", ("workload=long_doc_qa", "model=tiny", *PARTS), programs=3, alone=1)
NOTHING = UNIQUE._replace(overrides=("workload=synthetic_unique", "model=tiny", "workload.n_programs=4"), programs=4)


@pytest.fixture(scope="module")
def systems() -> Systems:
    return Systems(["engine.device=cpu", "model.dtype=float32"])


@pytest.fixture(scope="module")
def cells(systems: Systems) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as without:
        without.delenv("RADIXLAB_DATA", raising=False)
        without.setenv("HF_HUB_OFFLINE", "1")
        return {case.title: measure(case, systems, 2) for case in (SHARING, JOINED, NOTHING)}


def test_every_workload_has_a_row_and_a_description() -> None:
    assert {case.title.split(",")[0] for case in CASES} == set(WORKLOADS)
    assert workload_table.WHAT.keys() == {case.title for case in (*CASES, UNIQUE)}
    assert len({case.title for case in CASES}) == len(CASES)


def test_the_cache_finds_what_it_can_and_no_cache_finds_nothing(cells: dict[str, dict[str, Any]]) -> None:
    for title, cell in cells.items():
        of_lru, of_none = cell["throughput"]["lru"], cell["throughput"]["none"]
        assert [one["failed"] for one in (*of_lru, *of_none)] == [0] * 4
        assert {one["hit_rate"] for one in of_none} == {0.0}
        assert of_lru[0]["prompt_tokens"] == of_none[0]["prompt_tokens"] > 0
        for one in of_lru:
            assert one["hit_rate"] <= one["infinite"] + 1e-9
            assert one["hit_rate"] >= 0.99 * one["infinite"]
            if title != NOTHING.title:
                assert one["hit_rate"] > 0.3
        assert cell["data"]["origin"] in ("sample", "made")
    assert max(one["infinite"] for one in cells[NOTHING.title]["throughput"]["lru"]) < 0.05


def test_ratios_are_of_the_figures(cells: dict[str, dict[str, Any]]) -> None:
    cell = cells["mmlu"]
    runs = [cell["throughput"][policy] for policy in ("lru", "none")]
    (a, b), (c, d) = ([one["programs_per_s"] for one in found] for found in runs)
    ratio = cell["ratios"]["none"]["programs_per_s"]
    assert ratio["value"] == pytest.approx((a * b / (c * d)) ** 0.5, rel=0.2)
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    assert {"latency_s", "ttft_s"} <= cell["ratios"]["fcfs"].keys()
    assert NOTHING.alone == 0
    assert "latency_s" not in cells[NOTHING.title]["ratios"]["none"]


def test_remarks_name_what_a_reader_must_know(cells: dict[str, dict[str, Any]]) -> None:
    assert workloads.remarks(cells["mmlu"]) == []
    far = json.loads(json.dumps(cells["mmlu"]))
    far["throughput"]["lru"][0] |= {"hit_rate": 0.4, "infinite": 0.5, "failed": 1, "error": "Broken: so"}
    assert workloads.remarks(far) == [
        "the hit rate is 80.0% of the best possible",
        f"1 of {far['programs']} programs failed, the first: Broken: so",
    ]


def test_failed_programs_are_counted_not_hidden(systems: Systems) -> None:
    config = systems.config([*SHARING.overrides, "policy=lru"])
    system = systems.get(config)
    jobs = load(config, system).jobs()[:3]
    jobs[1] = replace(jobs[1], args={**jobs[1].args, "question": "so long " * 20_000})
    found = run(system, jobs, 2)
    assert found.failed == 1
    assert found.error.startswith("TooLong")
    assert found.calls >= 2


def test_the_command_writes_json_and_the_table_goes_into_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "w.json"
    arguments = ["--only", "json_decode, character", "--rounds", "1", "--model", "tiny", "--out", str(out)]
    assert workloads.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "json_decode, character" in printed
    result = json.loads(out.read_text())
    (cell,) = result["workloads"]
    assert cell["model"] == "tiny"
    page = f"before\n{workload_table.BEGIN}\nold\n{workload_table.END}\nafter\n"
    new = workload_table.written(page, result["workloads"])
    assert new.startswith("before\n")
    assert new.endswith(f"{workload_table.END}\nafter\n")
    assert "old" not in new
    assert "| json_decode, character |" in new
    assert workload_table.written(new, result["workloads"]) == new
    with pytest.raises(ValueError, match="the document has no"):
        workload_table.written("no marks", result["workloads"])
    with pytest.raises(SystemExit):
        workloads.main(["--only", "nonsense", "--out", str(out)])


def test_the_readmes_table_is_of_the_results() -> None:
    results = json.loads((ROOT / "experiments/results/workloads.json").read_text())
    page = (ROOT / "README.md").read_text()
    assert workload_table.written(page, results["workloads"]) == page
    table = page.partition(workload_table.BEGIN)[2].partition(workload_table.END)[0]
    measured = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:]
    assert measured == [case.title for case in (*CASES, UNIQUE)]
