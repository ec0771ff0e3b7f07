"""What recorded traffic is as programs: a request; or a session, call after call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import lang


class Call(NamedTuple):
    """One call of a recorded session."""

    prompt: str
    recorded: str
    """What came out; never empty."""
    max_tokens: int


@lang.function
def recorded_request(s: lang.ProgramState, prompt: str, max_tokens: int, recorded: str | None = None) -> None:
    """recorded: the answer's text; None where the trace has only its length."""
    s += prompt + lang.gen("answer", max_tokens=max_tokens, temperature=0, recorded=recorded)


@lang.function
def recorded_session(s: lang.ProgramState, calls: Sequence[Call], pause_s: float) -> None:
    """A closed loop: each call comes when the one before has its answer, and a pause.

    Every prompt stands for itself: a trace has what was sent, which need not go on from the answer before it.
    """
    for i, call in enumerate(calls):
        if i:
            s.sleep(pause_s)
        alone = s.fork(1)[0]
        alone += call.prompt + lang.gen("answer", max_tokens=call.max_tokens, temperature=0, recorded=call.recorded)
        s[f"answer{i}"] = alone["answer"]
