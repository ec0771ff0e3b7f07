"""Every snippet of docs/language.md does what it says, and all of the surface is in it."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lang
from lang.sampling import NAMES

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text()


@pytest.fixture
def no_default_backend() -> Iterator[None]:
    yield
    lang.set_default_backend(None)


@pytest.mark.usefixtures("no_default_backend")
def test_the_snippets_run_in_order() -> None:
    names: dict[str, Any] = {"__name__": "snippet"}
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 26
    for i, text in enumerate(snippets):
        name = f"docs/language.md, snippet {i}"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # traces read the source
        exec(compile(text, name, "exec", dont_inherit=True), names)


@pytest.mark.parametrize("name", sorted(name for name in lang.ProgramState.__dict__ if not name.startswith("_")))
def test_every_method_of_a_state_is_there(name: str) -> None:
    assert re.search(rf"\bs(tate)?\.{name}\b|\battempt\.{name}\b", PAGE) or name in ("system", "user", "assistant")


@pytest.mark.parametrize("name", sorted(NAMES - {"tool_choice"}))
def test_every_parameter_of_gen_is_there(name: str) -> None:
    assert f"`{name}`" in PAGE
