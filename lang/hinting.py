"""How programs give hints: what the methods of `ProgramState` by these names do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lang.hints import ConversationEnd, Hint, Pin, Prefetch, Unpin
from lang.output import Output
from lang.primitives import Gen, Select, written_parts
from lang.prompt import Piece, Prompt

if TYPE_CHECKING:
    from lang.state import ProgramState


def prefetch(state: ProgramState, steps: int, prompt: object) -> None:
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0:
        raise ValueError(f"prefetch(steps={steps!r}) is not allowed: it must be a number of calls, 0 or more")
    _tell(state, Prefetch(_known_so_far(state) if prompt is None else _written_out(prompt), steps))


def pin(state: ProgramState, seconds: float) -> None:
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise ValueError(f"pin(seconds={seconds!r}) is not allowed: it must be a finite number above 0")
    prefix = _known_so_far(state)
    if prefix.pieces and prefix not in state._pinned:
        state._pinned.append(prefix)
    _tell(state, Pin(prefix, state._runner.backend.clock.now() + seconds))


def unpin(state: ProgramState) -> None:
    for prefix in state._pinned:
        _tell(state, Unpin(prefix))
    state._pinned.clear()


def end_conversation(state: ProgramState) -> None:
    conversation = state._run.tags.conversation
    if not conversation:
        raise ValueError(
            "end_conversation(): this run belongs to none; say which with Runner.start(..., conversation=...)"
        )
    _tell(state, ConversationEnd(conversation))


def _tell(state: ProgramState, hint: Hint) -> None:
    if isinstance(hint, ConversationEnd) or hint.prefix.pieces:  # there is nothing to say of an empty prefix
        state._runner.backend.hint(hint, state._run.tags)


def _known_so_far(state: ProgramState) -> Prompt:
    """The prompt up to the first output that is on its way, or never comes."""
    pieces: list[Piece] = []
    for piece in state._pieces:
        if isinstance(piece, Output):
            if not piece.finished or piece.problem is not None:
                break
            pieces.append(piece.written)
        else:
            pieces.append(piece)
    return Prompt.of(pieces)


def _written_out(prompt: object) -> Prompt:
    """Raises TypeError for what is no part of a prompt, ValueError for a call."""
    pieces: list[Piece] = []
    for part in written_parts(prompt):
        if isinstance(part, Gen | Select):
            raise ValueError(
                "prefetch(prompt=...) takes what is known already: text, images and roles, no gen or select"
            )
        pieces.append(part)
    return Prompt.of(pieces)
