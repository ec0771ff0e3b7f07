"""The three places that data comes from, for workloads whose data is a few files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, data_folder, digest, read_bytes, sample_note


class Files(NamedTuple):
    """Files that were found and read."""

    contents: Mapping[str, bytes]
    """By the name that was asked for first (`test.jsonl` where `test.jsonl.gz` was found)."""
    paths: Mapping[str, Path]
    """Where each lies: for messages, and for what reads it itself."""
    source: DataSource


class NoFiles(NamedTuple):
    """Nobody said where they are."""

    why: str
    """Empty where there is nothing to tell."""


def find_files(
    folder: str,
    data_dir: str | None,
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    also: Mapping[str, Sequence[str]] | None = None,
) -> Files | NoFiles:
    """Reads files of the folder `folder` of `data_dir` (or RADIXLAB_DATA); each may be there with `.gz` added.

    also: other names that a file may have, by its first. Raises DataError when the folder is there and a needed file
    is missing or unreadable; the contents are as on disk (`workloads.data.as_text` unpacks).
    """
    at, note = data_folder(folder, data_dir)
    if at is None:
        return NoFiles(note)
    paths: dict[str, Path] = {}
    for name in (*needed, *optional):
        forms = [form for one in (name, *(also or {}).get(name, ())) for form in (one, f"{one}.gz")]
        found = next((at.path / form for form in forms if (at.path / form).is_file()), None)
        if found is None and at.path.is_file() and at.path.name in forms:
            found = at.path
        if found is not None:
            paths[name] = found
        elif name in needed:
            raise DataError(f"{at.given_as}: no {' or '.join(forms)} in {at.path}; it needs {', '.join(needed)}")
    contents = {name: read_bytes(path) for name, path in paths.items()}
    sums = digest({paths[name].name: content for name, content in contents.items()})
    where = str(at.path) if len(paths) != 1 else str(next(iter(paths.values())))
    return Files(contents, paths, DataSource("files", where, sums))


def sample_source(title: str, items: Any, *why: str) -> DataSource:
    """Of a built-in sample `items` (anything JSON can hold) that stands in for the data set `title`."""
    content = json.dumps(items, sort_keys=True, default=str).encode()
    return DataSource("sample", "", digest({"sample": content}), sample_note(title, *why))


def joined(*sources: DataSource) -> DataSource:
    """Of a workload that reads several data sets; it counts as a sample if one of them is."""
    least_real = [s.origin for kind in ("sample", "hub", "files") for s in sources if s.origin == kind]
    sums = digest({f"{i}": s.sha256.encode() for i, s in enumerate(sources)})
    notes = "; ".join(dict.fromkeys(s.note for s in sources if s.note))
    return DataSource(least_real[0], ", ".join(dict.fromkeys(s.path for s in sources if s.path)), sums, notes)


def need_at_least(**given: tuple[Any, int]) -> None:
    """Checks whole numbers: name=(value, least); None passes. Raises ValueError naming the first that isn't allowed."""
    for name, (value, least) in given.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise ValueError(f"{name}={value!r} is not allowed: it must be a whole number, {least} or more")


def need_one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not allowed: it must be one of {', '.join(allowed)}")
