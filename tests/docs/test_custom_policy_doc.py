"""Every snippet of docs/custom_policy.md does what it says."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from engine.conformance.__main__ import main
from engine.policies.base import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "custom_policy.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's mine.py, as a reader would have it."""
    (file,) = (text for text in snippets("python") if text.startswith("# mine.py"))
    (tmp_path / "mine.py").write_text(file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


def test_the_python_snippets_run_in_order(mine: Path) -> None:
    names: dict[str, object] = {"__name__": "snippet"}
    for text in snippets("python"):
        exec(compile(text, "docs/custom_policy.md", "exec"), names)
    assert {"HitsPerToken", "MRU", "AnyLeaf", "ShortestUncached"} <= names.keys()


def test_the_kits_command_runs(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = [line for text in snippets("sh") for line in text.splitlines() if "engine.conformance" in line]
    assert len(commands) == 1
    program, dash_m, module, *arguments = shlex.split(commands[0])
    assert (program, dash_m, module) == ("python", "-m", "engine.conformance")
    assert main([*arguments, "--examples", "20"]) == 0
    assert "every promise of eviction policies held" in capsys.readouterr().out


def test_the_policy_is_as_short_as_promised() -> None:
    (file,) = (text for text in snippets("python") if text.startswith("# mine.py"))
    assert len([line for line in file.splitlines() if line.strip()]) <= 15


def test_the_entry_point_groups_are_those_of_the_registry() -> None:
    (text,) = snippets("toml")
    groups = tomllib.loads(text)["project"]["entry-points"].keys() | set(re.findall(r"`(radixlab\.\w+)`", PAGE))
    assert groups == {f"radixlab.{kind}" for kind in KINDS}
