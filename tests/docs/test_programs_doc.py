"""docs/programs.md names the programs that there are, by commands that there are; its snippet does what it says."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "programs.md").read_text()
COMMANDS = re.findall(r"`python -m ([\w.]+)`", PAGE)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_is_a_program_with_a_main(module: str) -> None:
    assert callable(importlib.import_module(module).main)
    source = (ROOT / (module.replace(".", "/") + ".py")).read_text()
    assert source.endswith('if __name__ == "__main__":\n    main()\n')


def test_every_program_has_its_command_and_its_counts() -> None:
    there = {path.stem for path in (ROOT / "examples" / "programs").glob("*.py")} - {"__init__", "example"}
    assert {command.rpartition(".")[2] for command in COMMANDS} == there
    counted = set(re.findall(r"^\| (\w+) \| \d+ \| \d+ \| \d+ \| \d+ \|$", PAGE, re.MULTILINE))
    assert counted == there - {"image_questions"}, "the mock computes nothing"


def test_the_snippet_runs() -> None:
    (snippet,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(compile(snippet, "docs/programs.md", "exec", dont_inherit=True), names)
    assert names["again"].text()


def test_the_readme_leads_here() -> None:
    assert "(docs/programs.md)" in (ROOT / "README.md").read_text()
