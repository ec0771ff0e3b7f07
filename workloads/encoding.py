"""Long inputs in parts: read one behind the other, or each on its own and their KV put one behind the other."""

from __future__ import annotations

from collections.abc import Sequence

import lang

ENCODINGS = ("concatenated", "plain")


def add_parts(s: lang.ProgramState, parts: Sequence[str], encoding: str) -> None:
    """concatenated: each part sees what is in `s` and itself; what follows sees all. plain: ordinary text."""
    if encoding == "plain":
        s += "".join(parts)
        return
    branches = s.fork(len(parts))
    branches += list(parts)
    branches.join("concate_and_append")
