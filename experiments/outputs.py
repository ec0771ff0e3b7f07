"""The folder that a run leaves: written whole or not at all, found again by the hash of its configuration."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

Write = Callable[[Path], None]
"""Writes one file to the path given."""
REQUIRED = ("config.yaml", "requests.parquet", "events.parquet", "summary.json", "report.html")


class OutputError(RuntimeError):
    """A result could not be written. The message says which file, where, why and what to do."""


class UnreadableRunError(ValueError):
    """A folder is not a finished run. The message says what is missing."""


def new_folder(root: Path, workload: str, policy: str, config_hash: str, now: datetime) -> Path:
    """root/workload/policy/time-hash; a number is added where that exists."""
    base = root / workload / policy / f"{now:%Y%m%d-%H%M%S}-{config_hash}"
    folder, number = base, 2
    while folder.exists():
        folder, number = base.with_name(f"{now:%Y%m%d-%H%M%S}.{number}-{config_hash}"), number + 1
    return folder


def find_finished(root: Path, workload: str, policy: str, config_hash: str) -> Path | None:
    """The newest finished run with that configuration hash, or None."""
    for folder in sorted((root / workload / policy).glob(f"[0-9]*-{config_hash}"), reverse=True):
        with contextlib.suppress(UnreadableRunError):
            read_summary(folder)
            return folder
    return None


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json of a finished run. Raises UnreadableRunError."""
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        what = f"it has no {', '.join(missing)}" if folder.is_dir() else "there is no such folder"
        raise UnreadableRunError(
            f"{folder} is not a finished run: {what}; give a folder outputs/WORKLOAD/POLICY/TIME-HASH"
        )
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError) as error:
        raise UnreadableRunError(f"{folder / 'summary.json'} can't be read: {error}") from error
    if not isinstance(summary, dict) or "workload" not in summary:
        raise UnreadableRunError(f"{folder / 'summary.json'} is not the summary of a run: it names no workload")
    return summary


def check_writable(root: Path) -> None:
    """Raises OutputError when results could not be written below `root`: before the work, not after it."""
    there = next(path for path in (root, *root.absolute().parents) if path.exists())
    if not there.is_dir():
        raise OutputError(f"outputs={root}: {there} is a file; give a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"outputs={root}: no permission to write in {there}; give another folder")


def write_whole(folder: Path, files: Mapping[str, Write]) -> None:
    """Writes `files` (name: writer) into a hidden neighbour of `folder`, syncs them to the disk, then renames it.

    Raises OutputError, and leaves nothing behind, when any file can't be written.
    """
    part = folder.with_name(f".partial-{os.getpid()}-{folder.name}")
    made: list[Path] = []
    name = ""
    try:
        made = _make(folder.parent)
        _sweep_dead(folder.parent)
        part.mkdir()
        for name, write in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
            _sync(path)
        name = ""
        for directory in {part, *((part / name).parent for name in files)}:
            _sync(directory)
        part.rename(folder)
        _sync(folder.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(
            f"can't write {name or 'the results'} of {folder}: {reason}; nothing was left there. {_advice(error)}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        for directory in reversed(made):
            with contextlib.suppress(OSError):
                directory.rmdir()  # only where nothing came to lie in it


def write_text(text: str) -> Write:
    """A writer of UTF-8 text."""
    return lambda path: _write_bytes(path, text.encode())


def write_bytes(data: bytes) -> Write:
    return lambda path: _write_bytes(path, data)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Free some space there, or give a folder on another disk with outputs=PATH, and run it again"
    return "Give another folder with outputs=PATH, and run it again"


def _make(directory: Path) -> list[Path]:
    """Makes it with its parents; those that weren't there, outermost first."""
    missing = [path for path in (directory, *directory.parents) if not path.exists()][::-1]
    for path in missing:
        path.mkdir(exist_ok=True)
    return missing


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep_dead(directory: Path) -> None:
    """Removes what killed processes left half-written here."""
    for path in directory.glob(".partial-*"):
        owner = re.match(r"\.partial-(\d+)-", path.name)
        if owner is not None and not _alive(int(owner.group(1))):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
