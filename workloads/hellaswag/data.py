"""HellaSwag's validation items, from the published JSON lines or the copy, the hub, or our sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import (
    DataError,
    check_fields,
    data_folder,
    digest,
    from_hub,
    jsonl_rows,
    read_bytes,
    sample_note,
)
from workloads.hellaswag.sample import sample_items

FILES = ("hellaswag_val.jsonl", "hellaswag_val.jsonl.gz")
HUB_NAME = "Rowan/hellaswag"


class Item(NamedTuple):
    context: str
    """Activity, colon, and what has happened so far."""
    endings: tuple[str, ...]
    """Four."""
    label: int
    """Index of the right one."""


class Items(NamedTuple):
    source: DataSource
    items: tuple[Item, ...]


def load_items(data_dir: str | None) -> Items:
    """Raises DataError when the folder (or file) named has no HellaSwag that can be read."""
    folder, note = data_folder("hellaswag", data_dir)
    if folder is not None:
        return _from_files(folder.path, folder.given_as)
    hub = from_hub(HUB_NAME, None, ("validation",))
    if hub.splits is not None:
        rows = hub.splits["validation"]
        items = tuple(_from_row(f"{HUB_NAME}, row {i}", row) for i, row in enumerate(rows))
        return Items(DataSource("hub", HUB_NAME, hub.digest(), note), items)
    items = tuple(Item(*item) for item in sample_items())
    content = {"sample": json.dumps(items).encode()}
    return Items(DataSource("sample", "", digest(content), sample_note("HellaSwag", note, hub.why_not)), items)


def _from_files(path: Path, given_as: str) -> Items:
    file = path if path.is_file() else next((path / name for name in FILES if (path / name).is_file()), None)
    if file is None:
        raise DataError(f"{given_as}: no HellaSwag in {path}; it needs {' or '.join(FILES)}")
    content = read_bytes(file)
    items = tuple(_from_row(place, row) for place, row in jsonl_rows(str(file), content, {"ctx": str}))
    if not items:
        raise DataError(f"{file}: no items in it; get the file again")
    return Items(DataSource("files", str(file), digest({file.name: content})), items)


def _from_row(place: str, row: Mapping[str, Any]) -> Item:
    """With `activity_label` as published, or with the label already at the head of `ctx`."""
    check_fields(place, row, {"ctx": str, "endings": list, "label": (int, str)})
    endings = row["endings"]
    if len(endings) != 4 or not all(isinstance(ending, str) and ending for ending in endings):
        raise DataError(f"{place}: four endings (strings that aren't empty) are needed, not {endings!r:.80}")
    if str(row["label"]) not in tuple("0123"):
        raise DataError(f"{place}: the label is {row['label']!r}; it must be 0, 1, 2 or 3 (the test split has none)")
    activity = row.get("activity_label")
    context = f"{activity}: {row['ctx']}" if activity else row["ctx"]
    return Item(context, tuple(endings), int(row["label"]))
