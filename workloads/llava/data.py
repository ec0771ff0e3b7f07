"""LLaVA-Bench's questions and GPT-4's answers to them: the published JSON lines, or our sample."""

from __future__ import annotations

from typing import NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, jsonl_rows
from workloads.llava.sample import sample_questions
from workloads.sources import NoFiles, find_files, sample_source

QUESTIONS, ANSWERS = "questions.jsonl", "answers_gpt4.jsonl"


class Question(NamedTuple):
    id: int
    image: str
    """Name of the picture: `001.jpg`."""
    text: str
    answer: str
    """What GPT-4 said, from a description of the picture."""


class Questions(NamedTuple):
    source: DataSource
    questions: tuple[Question, ...]


def load_questions(data_dir: str | None) -> Questions:
    """In the order of the file, where questions to one picture follow each other.

    Raises DataError naming file and line: a field that isn't there, a question without an answer, one that comes twice.
    """
    files = find_files("llava_bench", data_dir, [QUESTIONS, ANSWERS])
    if isinstance(files, NoFiles):
        made = sample_questions()
        return Questions(sample_source("LLaVA-Bench", made, files.why), tuple(Question(*one) for one in made))
    answers: dict[int, str] = {}
    name = str(files.paths[ANSWERS])
    for place, row in jsonl_rows(name, files.contents[ANSWERS], {"question_id": int, "text": str}):
        if not row["text"]:
            raise DataError(f"{place}: the answer is empty; get the file again")
        answers[row["question_id"]] = row["text"]
    found: dict[int, Question] = {}
    fields = {"question_id": int, "image": str, "text": str}
    for place, row in jsonl_rows(str(files.paths[QUESTIONS]), files.contents[QUESTIONS], {**fields}):
        number = row["question_id"]
        if number in found:
            raise DataError(f"{place}: question {number} comes a second time; get the file again")
        if number not in answers:
            raise DataError(f"{place}: {name} has no answer to question {number}; get both files of one release")
        found[number] = Question(number, row["image"], row["text"], answers[number])
    if not found:
        raise DataError(f"{files.paths[QUESTIONS]}: no questions in it; get the file again")
    return Questions(files.source, tuple(found.values()))
