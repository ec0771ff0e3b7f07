"""Every snippet of docs/constraints.md does what it says."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from engine.constraints.backends import BACKENDS
from engine.constraints.base import GrammarLimits

PAGE = (Path(__file__).parents[2] / "docs" / "constraints.md").read_text()


def test_the_snippets_run_in_order() -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 11
    for text in snippets:
        exec(compile(text, "docs/constraints.md", "exec", dont_inherit=True), names)


def test_the_limits_are_those_of_the_engine() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| (\d+) \|$", PAGE, re.MULTILINE))
    assert rows == {name: str(value) for name, value in dataclasses.asdict(GrammarLimits()).items()}


def test_every_backend_has_its_column() -> None:
    (header,) = re.findall(r"^\| \| (.*`llguidance`.*) \|$", PAGE, re.MULTILINE)
    assert re.findall(r"`(\w+)`", header) == list(BACKENDS)
