"""MMLU, few-shot: the examples of a subject stand before each of its questions, and the answer is one of four letters.

The letter is selected; the paper's own script generates one token (`workloads/mmlu/program.py`). A batch of
questions of one subject has a long common prefix: its examples.
"""

from __future__ import annotations

import lang
from examples.programs.example import Example
from workloads.mmlu.data import LETTERS, Question
from workloads.mmlu.program import examples_text, question_text
from workloads.mmlu.sample import sample_questions

N_SHOTS = 3


@lang.function
def mmlu(s: lang.ProgramState, examples: str, question: str) -> str:
    s += examples
    s += question + lang.select("answer", [f" {letter}" for letter in LETTERS])
    return s["answer"].strip()


def questions_of(split: str, subject: str) -> list[Question]:
    return [question for item in sample_questions(split) if (question := Question(*item)).subject == subject]


SUBJECT = sample_questions("dev")[0][0]
EXAMPLE = Example(
    mmlu,
    items=[
        {
            "examples": examples_text(SUBJECT, questions_of("dev", SUBJECT)[:N_SHOTS]),
            "question": question_text(question),
        }
        for question in questions_of("test", SUBJECT)[:6]
    ],
)


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
