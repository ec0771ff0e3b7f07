"""Texts as they grow."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from lang.output import Output

if TYPE_CHECKING:
    from lang.state import ProgramState


class Waits(NamedTuple):
    """Nothing new until there is more of the output than was seen, or (None) until the program has gone on."""

    output: Output | None
    seen: int = 0


def growing(state: ProgramState, name: str | None) -> Iterator[str]:
    """Raises what went wrong, after the text that came before it."""
    runner = state._runner
    for news in _news(state, name):
        if isinstance(news, str):
            yield news
        elif news.output is not None:
            runner.wait(runner.growth(news.output, news.seen))
        else:
            runner.let_go_on(state._run)


async def growing_aside(state: ProgramState, name: str | None, with_meta: bool) -> AsyncIterator[Any]:
    """As `growing`, for async code."""
    runner = state._runner
    for news in _news(state, name):
        if isinstance(news, str):
            yield (news, _meta(state, name)) if with_meta else news
        elif news.output is not None:
            await runner.until(runner.growth(news.output, news.seen))
        else:
            await runner.until(runner.progress_of(state._run))


def _news(state: ProgramState, name: str | None) -> Iterator[str | Waits]:
    return _of_prompt(state) if name is None else _of_variable(state, name)


def _of_variable(state: ProgramState, name: str) -> Iterator[str | Waits]:
    while name not in state and state._runner.goes_on_elsewhere(state._run):
        yield Waits(None)
    held = state._variable(name)
    if not isinstance(held, Output):
        value = state[name]
        if not isinstance(value, str):
            raise TypeError(f"text_iter({name!r}): the variable is {type(value).__name__}, not text; read s[{name!r}]")
        yield value
        return
    seen = 0
    while True:
        text, finished = held.partial, held.finished
        if len(text) > seen:
            yield text[seen:]
            seen = len(text)
        if finished:
            held.done()
            return
        yield Waits(held, seen)


def _of_prompt(state: ProgramState) -> Iterator[str | Waits]:
    seen = 0
    while True:
        text, last = state._so_far()
        if len(text) > seen:
            yield text[seen:]
            seen = len(text)
        if last is not None:
            if last.finished:
                last.done()
            yield Waits(last, len(last.partial))
        elif state._runner.goes_on_elsewhere(state._run):
            yield Waits(None)
        elif state._run.error is not None:
            raise state._run.error
        else:
            return


def _meta(state: ProgramState, name: str | None) -> dict[str, Any]:
    held = state._variables.get(name) if name is not None else None
    return held.call.meta if isinstance(held, Output) and held.call is not None and held.finished else {}
