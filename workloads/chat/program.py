"""Conversations, a turn at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import lang


class Asked(NamedTuple):
    """One turn as it is run."""

    said: str
    answer: str | None
    """Recorded. Where outputs are fixed only its length counts, and without one `max_tokens`."""
    max_tokens: int
    think_s: float
    """Seconds before it is said."""


@lang.function
def synthetic(s: lang.ProgramState, turns: Sequence[Asked]) -> None:
    """As the paper's script: questions and answers as bare text."""
    for i, turn in enumerate(turns):
        _think(s, turn.think_s)
        s += turn.said
        s += lang.gen(f"answer{i}", max_tokens=turn.max_tokens, temperature=0, ignore_eos=True, recorded=turn.answer)
    _end(s)


@lang.function
def conversation(s: lang.ProgramState, turns: Sequence[Asked], system: str) -> None:
    """In roles."""
    if system:
        s += lang.system(system)
    for i, turn in enumerate(turns):
        _think(s, turn.think_s)
        s += lang.user(turn.said)
        answer = lang.gen(f"answer{i}", max_tokens=turn.max_tokens, temperature=0, recorded=turn.answer)
        s += lang.assistant(answer)
    _end(s)


@lang.function
def session(s: lang.ProgramState, turns: Sequence[Asked]) -> None:
    """An agent's calls: each goes on from all that was observed before, and its answer stays outside."""
    for i, turn in enumerate(turns):
        _think(s, turn.think_s)
        s += turn.said
        branch = s.fork(1)
        branch += lang.gen(f"answer{i}", max_tokens=turn.max_tokens, temperature=0, recorded=turn.answer)
        branch.join()
        s.sync()
        _ = s[f"answer{i}"]
    _end(s)


def _think(s: lang.ProgramState, seconds: float) -> None:
    """Behind the last answer, once it is there."""
    s.sync()
    if seconds:
        s.sleep(seconds)


def _end(s: lang.ProgramState) -> None:
    s.sync()
    s.end_conversation()
