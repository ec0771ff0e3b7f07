"""What the README shows is what there is."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from engine.conformance import check_eviction
from engine.policies.registry import make_policy
from experiments.arguments import admit_files
from experiments.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "README.md").read_text()


def snippets(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line for text in snippets("sh") for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_first_policy_has_15_lines_and_keeps_every_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = (text for text in snippets("python") if text.startswith("# mine.py"))
    assert len([line for line in file.splitlines() if line.strip()]) <= 15
    (tmp_path / "mine.py").write_text(file)
    monkeypatch.chdir(tmp_path)
    name = re.search(r"mine\.py:(\w+)", PAGE)
    assert name is not None
    check_eviction(lambda: make_policy("eviction", name.group(0), {}), examples=20)


@pytest.mark.parametrize("words", [words for words in commands() if words[:2] == ["python", "run.py"]], ids=" ".join)
def test_every_run_command_is_a_valid_configuration(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(next(text for text in snippets("python") if text.startswith("# mine.py")))
    (tmp_path / "conf").symlink_to(ROOT / "conf")
    monkeypatch.chdir(tmp_path)
    first_of_each = [word.split(",")[0] for word in words[2:] if word != "-m"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=admit_files(first_of_each))
    settings = OmegaConf.to_container(config, resolve=True)
    assert isinstance(settings, dict)
    RunConfig.parse({str(key): value for key, value in settings.items()})


def test_every_command_names_a_file_or_module_that_is_there() -> None:
    for words in commands():
        if words[:2] == ["python", "-m"]:
            path = ROOT / words[2].replace(".", "/")
            assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), words
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words


def test_the_program_of_many_calls_runs_as_printed(tmp_path: Path) -> None:
    (file,) = (text for text in snippets("python") if text.startswith("# judge.py"))
    (tmp_path / "judge.py").write_text(file)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "judge.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "common_calls: calls 4 -> 4" in done.stdout


def test_every_link_into_the_tree_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (ROOT / target).exists(), target
