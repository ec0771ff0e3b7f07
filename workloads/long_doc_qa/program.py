"""One question about a document in parts."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.encoding import add_parts

INSTRUCTION = "Here are parts of a document. Read them all, then answer the question about them in a few words.\n"


@lang.function
def ask_document(
    s: lang.ProgramState,
    beginning: str,
    parts: Sequence[str],
    question: str,
    encoding: str,
    max_tokens: int,
    recorded: str,
) -> None:
    """beginning: `beginning_text`; parts: `part_texts`."""
    s += beginning
    add_parts(s, parts, encoding)
    s += question_text(question)
    s += lang.gen("answer", max_tokens=max_tokens, stop="\n", temperature=0, recorded=recorded)


def beginning_text(title: str) -> str:
    return f"{INSTRUCTION}Title: {title}\n\n"


def part_texts(segments: Sequence[str]) -> list[str]:
    return [f"Part {i + 1}:\n{segment}\n\n" for i, segment in enumerate(segments)]


def question_text(question: str) -> str:
    return f"Question: {question}\nAnswer:"
