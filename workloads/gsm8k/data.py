"""GSM8K's problems, from the published JSON lines, the hub, or our sample."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, check_fields, from_hub, jsonl_rows
from workloads.gsm8k.sample import sample_problems
from workloads.sources import Files, find_files, sample_source

HUB_NAME = "openai/gsm8k"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_CALCULATOR = re.compile(r"<<.*?>>")


class Problem(NamedTuple):
    question: str
    solution: str
    """As published: a line a step, calculator marks like <<2+3=5>> in it, and `#### 5` at the end."""

    @property
    def answer(self) -> str:
        """The number behind ####, without thousands separators."""
        return self.solution.rpartition("####")[2].strip().replace(",", "")

    @property
    def steps(self) -> list[str]:
        """The lines of the solution as plain text; at least one."""
        told = _CALCULATOR.sub("", self.solution.rpartition("####")[0])
        return [line.strip() for line in told.split("\n") if line.strip()] or [f"The answer is {self.answer}."]


class Problems(NamedTuple):
    source: DataSource
    train: tuple[Problem, ...]
    test: tuple[Problem, ...]


def load_problems(data_dir: str | None) -> Problems:
    """Raises DataError when the folder named has no GSM8K that can be read."""
    found = find_files("gsm8k", data_dir, ("train.jsonl", "test.jsonl"))
    if isinstance(found, Files):
        splits = []
        for name, content in found.contents.items():
            rows = jsonl_rows(str(found.paths[name]), content, {"question": str, "answer": str})
            splits.append(_problems(rows, str(found.paths[name])))
        return Problems(found.source, splits[0], splits[1])
    hub = from_hub(HUB_NAME, "main", ("train", "test"))
    if hub.splits is not None:
        train, test = (
            _problems(((f"{HUB_NAME} {split}, row {i}", row) for i, row in enumerate(hub.splits[split])), HUB_NAME)
            for split in ("train", "test")
        )
        return Problems(DataSource("hub", HUB_NAME, hub.digest(), found.why), train, test)
    made = [tuple(Problem(*problem) for problem in sample_problems(split)) for split in ("train", "test")]
    return Problems(sample_source("GSM8K", made, found.why, hub.why_not), made[0], made[1])


def _problems(rows: Iterable[tuple[str, Mapping[str, Any]]], where: str) -> tuple[Problem, ...]:
    found = []
    for place, row in rows:
        check_fields(place, row, {"question": str, "answer": str})
        problem = Problem(row["question"], row["answer"])
        if not NUMBER.fullmatch(problem.answer):
            raise DataError(
                f"{place}: the answer must end with #### and a number, it ends with {row['answer'][-20:]!r}"
            )
        found.append(problem)
    if not found:
        raise DataError(f"{where}: no problems in it; get the file again")
    return tuple(found)


def last_number(text: str) -> str:
    """The last number of a text as the paper's script takes it, without separators; empty when there is none."""
    found = NUMBER.findall(text.replace(",", ""))
    return found[-1] if found else ""


def same_number(said: str, answer: str) -> bool:
    return bool(said) and float(said) == float(answer)
