"""The folder of a run: whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from experiments import outputs
from experiments.outputs import OutputError, UnreadableRunError, write_text, write_whole

NAMES = [*outputs.REQUIRED, "plots/latency.png"]


def full_disk(path: Path) -> None:
    path.write_bytes(b"half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def finish(folder: Path, **summary: object) -> Path:
    content = json.dumps({"workload": "w", **summary})
    write_whole(folder, {name: write_text(content if name == "summary.json" else "x") for name in NAMES})
    return folder


def test_a_finished_folder_holds_every_file_and_nothing_else(tmp_path: Path) -> None:
    folder = finish(tmp_path / "w" / "p" / "run")
    assert sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()) == sorted(NAMES)
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("unlucky", NAMES)
def test_a_disk_full_at_any_file_leaves_nothing_and_keeps_the_others(tmp_path: Path, unlucky: str) -> None:
    kept = finish(tmp_path / "w" / "other" / "run")
    files: dict[str, outputs.Write] = {name: write_text("x") for name in NAMES}
    files[unlucky] = full_disk
    with pytest.raises(OutputError, match=rf"{unlucky}.*No space left.*nothing was left.*outputs=PATH"):
        write_whole(tmp_path / "w" / "p" / "run", files)
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["other"]
    assert outputs.read_summary(kept)["workload"] == "w"


def test_a_disk_that_fails_at_the_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OutputError, match="Input/output error"):
        finish(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_killed_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    dead = tmp_path / ".partial-2147483646-run"
    dead.mkdir()
    mine = tmp_path / f".partial-{os.getppid()}-run"
    mine.mkdir()
    finish(tmp_path / "run")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([mine.name, "run"])


def test_the_newest_finished_run_of_a_hash_is_found(tmp_path: Path) -> None:
    names = [outputs.new_folder(tmp_path, "w", "p", "abc", datetime(2026, 1, day)) for day in (1, 2, 3)]
    for folder in names[:2]:
        finish(folder)
    names[2].mkdir()  # not finished
    assert outputs.find_finished(tmp_path, "w", "p", "abc") == names[1]
    assert outputs.find_finished(tmp_path, "w", "p", "other") is None
    assert outputs.find_finished(tmp_path, "w", "q", "abc") is None


def test_two_runs_in_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    now = datetime(2026, 1, 1)
    first = finish(outputs.new_folder(tmp_path, "w", "p", "abc", now))
    second = finish(outputs.new_folder(tmp_path, "w", "p", "abc", now))
    assert first != second
    assert outputs.find_finished(tmp_path, "w", "p", "abc") == second


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "events.parquet").unlink(), "has no events.parquet"),
        (lambda folder: (folder / "summary.json").write_text('{"workload":'), "can't be read"),
        (lambda folder: (folder / "summary.json").write_text("[]"), "not the summary of a run"),
    ],
)
def test_a_spoilt_run_says_what_is_wrong(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    folder = finish(tmp_path / "run")
    spoil(folder)
    with pytest.raises(UnreadableRunError, match=says):
        outputs.read_summary(folder)


def test_a_missing_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreadableRunError, match="no such folder"):
        outputs.read_summary(tmp_path / "nothing")


def test_an_output_folder_that_is_a_file_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        outputs.check_writable(tmp_path / "file" / "below")
    outputs.check_writable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()
