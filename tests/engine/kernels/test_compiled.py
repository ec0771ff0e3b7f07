"""Every kernel compiles for chips that aren't there, fits them, and is what the docs say it is.

The code is compiled in a process of its own: this one interprets kernels. `python -m engine.kernels.inspect` does the
same for more chips, and with `--all-tiles` for all that tuning may choose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from engine.kernels.catalogue import NAMES, kernel_file
from engine.kernels.compiled_table import rows_on, version_on

REPOSITORY = Path(__file__).parents[3]
PAGE = REPOSITORY / "docs" / "kernels_compiled.md"
CHIPS = (86, 90)
WRITE = "the page is of other code: run python -m engine.kernels.inspect --write"


@pytest.mark.parametrize("name", NAMES)
def test_kernel_compiles_without_spills_within_each_chip_and_as_documented(name: str, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    done = _command("--kernel", name, "--chips", *map(str, CHIPS), "--processes", "1", "--json", str(found))

    assert done.returncode == 0, done.stderr
    contents = json.loads(found.read_text())
    findings = contents["findings"]
    assert {(one["case"], one["capability"]) for one in findings} == {
        (case.label, chip) for case in kernel_file(name).cases() for chip in CHIPS if chip >= case.capability
    }
    assert all(one["code"]["registers"] > 0 and one["code"]["blocks"] > 0 for one in findings)

    page = PAGE.read_text(encoding="utf-8")
    if version_on(page) == contents["triton"]:  # another compiler, another code
        now = contents["rows"][name]
        assert sorted(row for chip in CHIPS for row in rows_on(page, name, chip)) == sorted(now), WRITE


def test_all_kernel_files_are_in_the_catalogue() -> None:
    folder = REPOSITORY / "engine" / "kernels"
    with_cases = {path.stem for path in folder.glob("*.py") if "\ndef cases() ->" in path.read_text(encoding="utf-8")}
    assert with_cases == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_kernel_file_shows_all_that_the_contract_asks_for(name: str) -> None:
    module = vars(kernel_file(name))
    assert {"TILES", "cases", "work"} <= set(module)
    launchers = [public for public in module if public.startswith(name) and f"{public}_reference" in module]
    assert launchers, "no launcher of that name with a reference"
    for launcher in launchers:
        of_both = [list(signature(module[one]).parameters) for one in (launcher, f"{launcher}_reference")]
        assert of_both[0] == of_both[1]
    labels = [case.label for case in kernel_file(name).cases()]
    assert len(labels) == len(set(labels)), "two cases have the same label"


def test_interpreting_process_refuses_to_inspect() -> None:
    done = _command("--kernel", NAMES[0], TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET" in done.stderr


def test_docs_are_written_by_the_pinned_compiler() -> None:
    pins = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8")
    assert f"triton=={version_on(PAGE.read_text(encoding='utf-8'))}\n" in pins


def _command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | variables
    return subprocess.run(
        [sys.executable, "-m", "engine.kernels.inspect", *arguments],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
