"""A register of lines, encoded in segments or as a whole, and a question for one of them."""

from __future__ import annotations

from collections.abc import Sequence

import lang

HEAD = "Below is a register. Each line has a name and a number. Remember every line.\n"


@lang.function
def line_retrieval(s: lang.ProgramState, parts: Sequence[str], name: str, number: str, concatenated: bool) -> str:
    """number: the recorded answer."""
    s += HEAD
    if concatenated:
        branches = s.fork(len(parts))
        for branch, part in zip(branches, parts):
            branch += part
        branches.join("concate_and_append")
    else:
        for part in parts:
            s += part
    s += f"\nThe number in line {name} is <"
    s += lang.gen("number", max_tokens=16, temperature=0, stop=">", recorded=number)
    return str(s["number"]).strip()
