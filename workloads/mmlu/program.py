"""The prompt and the program: as in the benchmark of the SGLang paper."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.mmlu.data import LETTERS, Question


@lang.function
def few_shot_mmlu(s: lang.ProgramState, examples: str, question: str, max_tokens: int) -> None:
    s += examples + question + lang.gen("answer", max_tokens=max_tokens, temperature=0)


def question_text(question: Question) -> str:
    choices = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=True))
    return f"{question.question}{choices}\nAnswer:"


def examples_text(subject: str, shots: Sequence[Question]) -> str:
    """What stands before every question of a subject."""
    header = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
    return header + "".join(f"{question_text(shot)} {shot.answer}\n\n" for shot in shots)
