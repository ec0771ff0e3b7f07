"""Every workload says what it is and what it stresses, and its page names no parameter that it hasn't."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from workloads.registry import WORKLOADS, workload_class

ROOT = Path(__file__).resolve().parents[2]
RUNS = ("workload", "model", "policy", "rate", "parallel", "page_size")
"""Not the workload's own."""


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_page_says_what_is_stressed(name: str) -> None:
    page = (ROOT / "workloads" / name / "README.md").read_text(encoding="utf-8")
    assert re.match(rf"# {name}\b", page)
    assert re.search(r"stress", page)
    known = inspect.signature(workload_class(name)).parameters
    for parameter in re.findall(r"`([a-z_]+)=[^`]*`", page):
        assert parameter in {*known, *RUNS}, parameter
