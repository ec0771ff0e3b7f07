"""Finding and reading data: given files, else the Hugging Face hub, else none (and the workload makes its sample)."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ENVIRONMENT = "RADIXLAB_DATA"
HUB_SECONDS = 3.0
"""How long the hub may take to answer before it counts as out of reach."""


class DataError(ValueError):
    """Data is missing or can't be read. The message names the file and line and says what to do."""


class Folder(NamedTuple):
    """Where a workload's files should be."""

    path: Path
    given_as: str
    """`workload.data_dir=...`, or the environment variable."""


def data_folder(workload: str, data_dir: str | os.PathLike[str] | None) -> tuple[Folder | None, str]:
    """The folder (or file) that `data_dir` or RADIXLAB_DATA names for `workload`, and a note when the latter has none.

    A folder of folders (`mmlu/`, `hellaswag/`, ...) counts as well as the workload's own. Raises DataError when what
    is named doesn't exist.
    """
    if data_dir is not None:
        path, given_as = Path(data_dir).expanduser(), f"workload.data_dir={data_dir}"
    elif os.environ.get(ENVIRONMENT):
        path, given_as = Path(os.environ[ENVIRONMENT]).expanduser(), f"{ENVIRONMENT}={os.environ[ENVIRONMENT]}"
    else:
        return None, ""
    if not path.exists():
        raise DataError(f"{given_as}: there is no such file or folder; give the folder that holds the {workload} data")
    if (path / workload).is_dir():
        return Folder(path / workload, given_as), ""
    if data_dir is None and path.name != workload:
        return None, f"{given_as} has no folder {workload}/"
    return Folder(path, given_as), ""


def digest(parts: Mapping[str, bytes]) -> str:
    """SHA-256 of one file's bytes; of several, that of their `sha256sum` listing, sorted by name."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in parts.items()}
    if len(sums) == 1:
        return next(iter(sums.values()))
    listing = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    return hashlib.sha256(listing.encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """Raises DataError when the file can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from error


def as_text(name: str, content: bytes) -> str:
    """UTF-8 text of a file, unpacked if it is gzip. Raises DataError when it is truncated, corrupt or no UTF-8."""
    if name.endswith(".gz") or content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name}: truncated or corrupt gzip file ({error}); get it again") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"{name}, line {line}: not UTF-8 text ({error.reason}); get the file again") from error


def jsonl_rows(
    name: str, content: bytes, fields: Mapping[str, type | tuple[type, ...]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) for each line of a JSON-lines file, gzip or plain; empty lines are skipped.

    Raises DataError naming file and line when a line isn't a JSON object with `fields` of their types.
    """
    for number, line in enumerate(as_text(name, content).split("\n"), 1):
        if not line.strip():
            continue
        place = f"{name}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place}: not JSON ({error.msg} at column {error.colno}); get the file again") from error
        if not isinstance(row, dict):
            raise DataError(f"{place}: a JSON object with {', '.join(fields)} is needed, not {type(row).__name__}")
        check_fields(place, row, fields)
        yield place, row


def check_fields(place: str, row: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]]) -> None:
    """Raises DataError when a field is missing or of another type."""
    for field, kind in fields.items():
        if field not in row:
            raise DataError(f"{place}: no field {field!r}; its fields: {', '.join(row) or 'none'}")
        if not isinstance(row[field], kind) or isinstance(row[field], bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            wanted = " or ".join(k.__name__ for k in kinds)
            raise DataError(f"{place}: field {field!r} is {type(row[field]).__name__}, {wanted} is needed")


def csv_rows(name: str, content: bytes, columns: int) -> Iterator[tuple[str, list[str]]]:
    """(place, row) for each record of a CSV file without a header. Raises DataError when one hasn't `columns`."""
    reader = csv.reader(io.StringIO(as_text(name, content), newline=""))
    try:
        for row in reader:
            if not row:
                continue
            place = f"{name}, line {reader.line_num}"
            if len(row) != columns:
                raise DataError(f"{place}: {len(row)} columns, {columns} are needed")
            yield place, row
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: not CSV ({error}); get the file again") from error


def tar_members(path: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """Content of the wanted files of a tar archive, by name; nothing is unpacked. Raises DataError if it is broken."""
    try:
        with tarfile.open(path) as archive:
            found = {}
            for member in archive:
                file = archive.extractfile(member) if member.isfile() and wanted(member.name) else None
                if file is not None:
                    found[member.name] = file.read()
            return found
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: truncated or corrupt tar archive ({error}); get it again") from error


class FromHub(NamedTuple):
    """Splits of a hub data set, and why there are none when there are none."""

    splits: Mapping[str, list[dict[str, Any]]] | None
    why_not: str = ""

    def digest(self) -> str:
        """SHA-256 of the rows as JSON lines, split by split."""
        assert self.splits is not None
        lines = {
            k: "".join(json.dumps(r, sort_keys=True) + "\n" for r in rows).encode() for k, rows in self.splits.items()
        }
        return digest(lines)


def from_hub(dataset: str, config: str | None, splits: Sequence[str]) -> FromHub:
    """Loads splits from the Hugging Face hub with `datasets`, if the hub answers within seconds.

    With HF_HUB_OFFLINE set only the local cache of `datasets` is asked. Never raises for a hub that has no answer.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    if not offline and (why_not := hub_silence(dataset)):
        return FromHub(None, why_not)
    try:
        import datasets

        return FromHub(
            {split: [dict(r) for r in datasets.load_dataset(dataset, config, split=split)] for split in splits}
        )
    except Exception as error:  # whatever it is, the sample is the answer, and the note says why
        where = "the local cache (HF_HUB_OFFLINE is set)" if offline else "the Hugging Face hub"
        return FromHub(None, f"{where} gave no {dataset}: {type(error).__name__}: {str(error).splitlines()[0]:.120}")


def hub_silence(dataset: str) -> str:
    """Why the hub can't be asked for `dataset` now; empty when it can. Takes at most HUB_SECONDS."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    answer: list[str] = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/api/datasets/{dataset}", timeout=HUB_SECONDS):
                answer.append("")
        except (OSError, ValueError) as error:
            answer.append(f"{endpoint} can't be reached ({getattr(error, 'reason', error)})")

    thread = threading.Thread(target=ask, daemon=True)  # a name server's silence heeds no timeout
    thread.start()
    thread.join(HUB_SECONDS)
    return answer[0] if answer else f"{endpoint} didn't answer within {HUB_SECONDS:g} s"


def sample_note(workload: str, *why: str) -> str:
    """The announcement that goes with a built-in sample."""
    reasons = "; ".join(reason for reason in why if reason)
    return (
        f"built-in sample made by our own code, not {workload}"
        + (f" ({reasons})" if reasons else "")
        + f"; for the real data set workload.data_dir=FOLDER or {ENVIRONMENT}=FOLDER"
    )
