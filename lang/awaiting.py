"""How async code reads a state: what the methods of `ProgramState` by these names do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lang.output import Gathered, Output, Span

if TYPE_CHECKING:
    from lang.state import ProgramState


async def get(state: ProgramState, name: str) -> Any:
    if name not in state:
        await _whole(state)
    held = state._variable(name)
    for output in _outputs_of(held):
        await state._runner.until(output)
    return state._value(held)


async def ready(state: ProgramState) -> None:
    await _whole(state)
    for output in state._outputs:
        await state._runner.until(output)


async def _whole(state: ProgramState) -> None:
    """Until the program has written all of it, unless it is the one that asks."""
    if state._runner.goes_on_elsewhere(state._run):
        await state._runner.until(state._run)


def _outputs_of(held: Any) -> Iterator[Output]:
    """What a variable is made of."""
    if isinstance(held, Output):
        yield held
    elif isinstance(held, Gathered):
        for value in held.values:
            yield from _outputs_of(value)
    elif isinstance(held, Span):
        yield from (piece for piece in held.pieces if isinstance(piece, Output))
