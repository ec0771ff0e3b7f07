"""Few-shot question answering: solved examples, then the question."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.gsm8k.data import Problem


@lang.function
def few_shot_gsm8k(s: lang.ProgramState, examples: str, question: str, solution: str, max_tokens: int) -> None:
    """solution: the recorded output."""
    s += examples + question
    s += lang.gen("answer", max_tokens=max_tokens, stop="Question", temperature=0, recorded=solution)


def question_text(problem: Problem) -> str:
    return f"Question: {problem.question}\nAnswer:"


def examples_text(shots: Sequence[Problem]) -> str:
    return "".join(f"{question_text(shot)} {shot.solution}\n\n" for shot in shots)
