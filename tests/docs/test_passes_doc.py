"""Every snippet of docs/passes.md does what it says, and every pass is in it."""

from __future__ import annotations

import linecache
import re
from pathlib import Path
from typing import Any

import pytest

from lang import passes

PAGE = (Path(__file__).parents[2] / "docs" / "passes.md").read_text()


def test_the_snippets_run_in_order() -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 3
    for i, text in enumerate(snippets):
        path = f"passes.md-{i}.py"
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
        exec(compile(text, path, "exec", dont_inherit=True), names)


@pytest.mark.parametrize("name", [name for name in passes.__all__ if name[0].islower()])
def test_every_pass_is_there(name: str) -> None:
    assert f"{name}(" in PAGE or f"`{name}`" in PAGE
