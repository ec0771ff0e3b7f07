"""One question about one line of the register."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.encoding import add_parts

INSTRUCTION = "Here is a list of registers, a line each. Remember which number each of them holds.\n"


@lang.function
def find_line(
    s: lang.ProgramState, parts: Sequence[str], name: str, encoding: str, max_tokens: int, recorded: str
) -> None:
    s += INSTRUCTION
    add_parts(s, parts, encoding)
    s += question_text(name)
    s += lang.gen("answer", max_tokens=max_tokens, stop="\n", temperature=0, recorded=recorded)


def question_text(name: str) -> str:
    return f"The list ends here.\nQuestion: which number does the register {name} hold?\nAnswer: the number is"
