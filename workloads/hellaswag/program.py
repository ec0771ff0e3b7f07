"""The prompt and the program: as in the benchmark of the SGLang paper."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.hellaswag.data import Item


@lang.function
def few_shot_hellaswag(s: lang.ProgramState, examples: str, question: str, choices: Sequence[str]) -> None:
    s += examples + question
    s += lang.select("answer", choices=choices)


def question_text(item: Item) -> str:
    return item.context + " "


def examples_text(items: Sequence[Item]) -> str:
    """What stands before every question."""
    return "".join(f"{question_text(item)}{item.endings[item.label]}\n\n" for item in items)
