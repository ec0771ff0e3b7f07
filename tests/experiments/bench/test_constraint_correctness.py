"""The counts over MaskBench's cases."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from experiments.bench.constraint_correctness import main, summary
from experiments.bench.maskbench import FILE, Verdict


def verdict(error: str | None = None, valid_refused: int = 0, invalid_accepted: int = 0) -> Verdict:
    return Verdict(error, valid_refused, invalid_accepted, 2, 3, 0.001, (1e-6, 3e-6), 10, 4)


def test_refused_schemas_count_no_instances() -> None:
    found = summary([verdict(), verdict(error="not"), verdict(invalid_accepted=1), verdict(valid_refused=2)])
    assert (found["schemas"], found["served"], found["refused"]) == (4, 1, 1)
    assert (found["valid_instances"], found["valid_refused"]) == (6, 2)
    assert (found["invalid_instances"], found["invalid_accepted"]) == (9, 1)
    assert found["forced_share"] == pytest.approx(0.4)
    assert found["mask_us_p50"] == pytest.approx(2)
    assert found["compile_ms_p50"] == pytest.approx(1)


def test_the_table_is_written(tmp_path: Path) -> None:
    tests = [{"valid": True, "data": {"a": 1}}, {"valid": False, "data": {"a": "x"}}]
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    (tmp_path / FILE).parent.mkdir()
    with gzip.open(tmp_path / FILE, "wt") as file:
        file.write(json.dumps({"id": "one", "schema": schema, "tests": tests}) + "\n")
        file.write(json.dumps({"id": "two", "schema": {"not": {}}, "tests": tests}) + "\n")
    out = tmp_path / "found.json"
    assert main(["--data", str(tmp_path), "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert (found["schemas"], found["served"], found["refused"]) == (2, 1, 1)
    assert list(found["refusals"].values()) == [1]
