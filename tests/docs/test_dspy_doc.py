"""Every snippet of docs/dspy.md does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import dspy

from lang.backends.dspy_engine.extensions import Extensions

PAGE = (Path(__file__).parents[2] / "docs" / "dspy.md").read_text()


def test_the_snippets_run_in_order() -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 4
    try:
        for text in snippets:
            exec(compile(text, "docs/dspy.md", "exec", dont_inherit=True), names)
    finally:
        dspy.configure(lm=None, adapter=None)


def test_the_extensions_are_those_that_are_served() -> None:
    (row,) = re.findall(r"^\| `extensions` \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == set(Extensions.model_fields)
