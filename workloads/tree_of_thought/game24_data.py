"""Puzzles of the Game of 24 and what GPT-4 said to some; for the others, what one who can reckon would say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, as_text, csv_rows
from workloads.sources import Files, find_files, sample_source
from workloads.tree_of_thought.game24 import N_VOTES, WORTH, Recorded
from workloads.tree_of_thought.numbers import TARGET, Numbers, as_numbers, can_be_24, solution, steps_from

PUZZLES = "24.csv"
LOG = "gpt-4_0.7_propose1_value3_greedy5_start900_end1000.json"
NAMES = {PUZZLES: ("24__24.csv",), LOG: (f"log_game24__{LOG}",)}
"""As published (in the task's folders), and as they are called where all data of tree of thought is in one folder."""
SAMPLE = ("4 5 6 10", "1 4 8 8", "3 3 7 7", "2 6 9 12", "1 5 5 9", "4 4 7 8", "2 3 5 12", "1 2 6 11")


class Puzzles(NamedTuple):
    source: DataSource
    puzzles: tuple[str, ...]
    """Four numbers each, easiest first."""
    logs: Mapping[str, Recorded]
    """Of some puzzles."""


def load_puzzles(data_dir: str | None) -> Puzzles:
    """Raises DataError."""
    found = find_files("tree_of_thought", data_dir, (PUZZLES,), (LOG,), also=NAMES)
    if not isinstance(found, Files):
        return Puzzles(sample_source("the Game of 24", SAMPLE, found.why), SAMPLE, {})
    name = str(found.paths[PUZZLES])
    rows = [(place, row[1]) for place, row in csv_rows(name, found.contents[PUZZLES], 6)][1:]
    for place, puzzle in rows:
        try:
            as_numbers(puzzle)
        except ValueError as error:
            raise DataError(f"{place}: {puzzle!r} aren't four numbers") from error
    logs = {}
    if LOG in found.contents:
        logs = _logs(str(found.paths[LOG]), found.contents[LOG])
    return Puzzles(found.source, tuple(puzzle for _, puzzle in rows), logs)


def _logs(name: str, content: bytes) -> dict[str, Recorded]:
    """Raises DataError for a log of another form."""
    try:
        runs = json.loads(as_text(name, content))
        return {run["steps"][0]["x"]: _log(run["steps"]) for run in runs}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name}: not a log of the Game of 24 ({error!r}); get the file again") from error


def _log(levels: Sequence[Mapping[str, Any]]) -> Recorded:
    proposals: dict[str, str] = {}
    votes: dict[str, tuple[str, ...]] = {}
    answers: dict[str, str] = {}
    for level in levels:
        for said, worth in zip(level["new_ys"], level["values"], strict=True):
            before, _, line = said.rstrip("\n").rpartition("\n")
            before += "\n" if before else ""
            if "left:" in line:
                proposals[before] = proposals.get(before, "") + line + "\n"
                if worth:
                    votes[said] = votes_of(worth)
            else:
                answers.setdefault(before, " " + line.removeprefix("Answer: "))
    return Recorded(proposals, votes, answers, said="none")


def votes_of(worth: float) -> tuple[str, ...]:
    """Votes whose worth adds up to this: the log has sums only. Raises ValueError when no three do."""
    for sure in range(N_VOTES + 1):
        for likely in range(N_VOTES + 1 - sure):
            for impossible in range(N_VOTES + 1 - sure - likely):
                of = {"sure": sure, "likely": likely, "impossible": impossible}
                if abs(sum(WORTH[word] * n for word, n in of.items()) - worth) < 1e-6:
                    cast = [word for word, n in of.items() for _ in range(n)]
                    return tuple(cast + ["no verdict"] * (N_VOTES - len(cast)))
    raise ValueError(f"no {N_VOTES} votes are worth {worth}")


def reckoned(puzzle: str, most: int = 8) -> Recorded:
    """What one says who can reckon: at most so many next steps from any thought, and whether it leads to 24."""
    proposals: dict[str, str] = {}
    votes: dict[str, tuple[str, ...]] = {}
    answers: dict[str, str] = {}
    expression = solution(as_numbers(puzzle))

    def tell(steps: str, left: Numbers) -> None:
        if len(left) == 1:
            answers[steps] = f" {expression} = 24" if left == (TARGET,) and expression else " none"
            return
        found = sorted(steps_from(left), key=lambda step: not can_be_24(step.left))[:most]
        proposals[steps] = "".join(f"{step.line}\n" for step in found)
        for step in found:
            path = f"{steps}{step.line}\n"
            votes[path] = ("sure" if can_be_24(step.left) else "impossible",) * N_VOTES
            tell(path, step.left)

    tell("", as_numbers(puzzle))
    return Recorded(proposals, votes, answers, said="none")
