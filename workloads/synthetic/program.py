"""A conversation or an agent's loop: something new, an output, a pause, something new behind all of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import lang


class Said(NamedTuple):
    """One turn."""

    pause_s: float
    """Before it: a user thinks, a tool works."""
    text: str
    recorded: str
    output_tokens: int


@lang.function
def rounds(s: lang.ProgramState, turns: Sequence[Said]) -> None:
    for i, turn in enumerate(turns):
        if i:
            s.sync()
            s.sleep(turn.pause_s)
        s += turn.text
        s += lang.gen(f"output{i}", max_tokens=turn.output_tokens, temperature=0, recorded=turn.recorded)
