"""MMLU's questions, from the published CSV files or tar archive, JSON-lines copies, the hub, or our sample."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import (
    DataError,
    check_fields,
    csv_rows,
    data_folder,
    digest,
    from_hub,
    jsonl_rows,
    read_bytes,
    sample_note,
    tar_members,
)
from workloads.mmlu.sample import sample_questions

LETTERS = "ABCD"
HUB_NAME = "cais/mmlu"


class Question(NamedTuple):
    subject: str
    question: str
    choices: tuple[str, ...]
    """Four."""
    answer: str
    """A, B, C or D."""


BySubject = Mapping[str, tuple[Question, ...]]


class Questions(NamedTuple):
    source: DataSource
    dev: BySubject
    """The examples."""
    test: BySubject


def load_questions(data_dir: str | None) -> Questions:
    """Raises DataError when the folder named has no MMLU that can be read. Hub and sample come in only when none is."""
    folder, note = data_folder("mmlu", data_dir)
    if folder is not None:
        return _from_files(folder.path, folder.given_as)
    hub = from_hub(HUB_NAME, "all", ("dev", "test"))
    if hub.splits is not None:
        dev, test = (
            _by_subject(_from_row(f"{HUB_NAME} {split}, row {i}", row) for i, row in enumerate(hub.splits[split]))
            for split in ("dev", "test")
        )
        return Questions(DataSource("hub", HUB_NAME, hub.digest(), note), dev, test)
    made = {split: [Question(*item) for item in sample_questions(split)] for split in ("dev", "test")}
    content = {split: json.dumps(items).encode() for split, items in made.items()}
    source = DataSource("sample", "", digest(content), sample_note("MMLU", note, hub.why_not))
    return Questions(source, _by_subject(made["dev"]), _by_subject(made["test"]))


def _from_files(path: Path, given_as: str) -> Questions:
    files = _csv_files(path) or _jsonl_files(path)
    if not files:
        raise DataError(
            f"{given_as}: no MMLU in {path}; it needs dev/*_dev.csv and test/*_test.csv as published (perhaps in a "
            "folder data/ or in data.tar), or mmlu_dev.jsonl and mmlu_test.jsonl (each perhaps with .gz)"
        )
    found: dict[str, list[Question]] = {"dev": [], "test": []}
    for name, content in files.items():
        split = "dev" if "_dev." in Path(name).name else "test"
        found[split] += _csv_questions(name, content, split) if ".csv" in name else _jsonl_questions(name, content)
    for split, questions in found.items():
        if not questions:
            raise DataError(f"{given_as}: no MMLU {split} questions in {path}; both dev and test files are needed")
    source = DataSource("files", str(path), digest({Path(name).name: content for name, content in files.items()}))
    return Questions(source, _by_subject(found["dev"]), _by_subject(found["test"]))


def _is_csv(name: str) -> bool:
    parts = Path(name).parts
    return len(parts) >= 2 and any(
        parts[-2] == split and parts[-1].endswith((f"_{split}.csv", f"_{split}.csv.gz")) for split in ("dev", "test")
    )


def _csv_files(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return tar_members(path, _is_csv) if ".tar" in path.name else {}
    for root in (path, path / "data"):
        named = [
            file for split in ("dev", "test") for file in sorted((root / split).glob("*.csv*")) if _is_csv(str(file))
        ]
        if named:
            return {str(file): read_bytes(file) for file in named}
    archives = sorted(path.glob("data.tar*"))
    return tar_members(archives[0], _is_csv) if archives else {}


def _jsonl_files(path: Path) -> dict[str, bytes]:
    if not path.is_dir():
        return {}
    named = [file for split in ("dev", "test") for file in sorted(path.glob(f"mmlu_{split}.jsonl*"))[:1]]
    return {str(file): read_bytes(file) for file in named}


def _csv_questions(name: str, content: bytes, split: str) -> Iterator[Question]:
    subject = Path(name).name.partition(f"_{split}.csv")[0]
    for place, (question, *choices, answer) in csv_rows(name, content, 6):
        yield _checked(place, Question(subject, question, tuple(choices), answer))


def _jsonl_questions(name: str, content: bytes) -> Iterator[Question]:
    for place, row in jsonl_rows(name, content, {"subject": str}):
        yield _from_row(place, row)


def _from_row(place: str, row: Mapping[str, Any]) -> Question:
    check_fields(place, row, {"subject": str, "question": str, "choices": list, "answer": (str, int)})
    answer = row["answer"]
    if isinstance(answer, int):
        answer = LETTERS[answer] if 0 <= answer < len(LETTERS) else str(answer)
    choices = row["choices"]
    if len(choices) != len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise DataError(f"{place}: four choices (strings) are needed, not {choices!r:.80}")
    return _checked(place, Question(row["subject"], row["question"], tuple(choices), answer))


def _checked(place: str, question: Question) -> Question:
    if question.answer not in tuple(LETTERS):
        raise DataError(f"{place}: the answer is {question.answer!r}; it must be A, B, C or D (or 0 to 3)")
    return question


def _by_subject(questions: Iterable[Question]) -> BySubject:
    """Subjects in alphabetical order, questions in that of the files."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        found.setdefault(question.subject, []).append(question)
    return {subject: tuple(found[subject]) for subject in sorted(found)}
