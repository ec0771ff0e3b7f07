"""What a program says instead of Python's own where a graph of it is to be made: branches, loops, computations.

Run as it stands, a program does at once what these say. Traced, it becomes a node that decides when the values are
there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lang.abstract import is_abstract
from lang.primitives import Movable, movable
from lang.tracing import current_tracer

__all__ = ["Movable", "apply", "cond", "loop", "movable", "pure", "switch"]

F = TypeVar("F", bound=Callable[..., Any])


def apply(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`function(*args, **kwargs)`. In a graph, once the values are there.

    Calls of functions that aren't `pure` keep their order.
    """
    tracer = current_tracer()
    if tracer is None:
        return function(*args, **kwargs)
    return tracer.apply_function(function, args, kwargs)


def pure(function: F) -> F:
    """Marks a function whose value depends on nothing but its arguments and that does nothing else.

    A graph may call it once for equal arguments, or not at all.
    """
    function.__lang_pure__ = True  # type: ignore[attr-defined]
    return function


def cond(s: Any, test: Any, then: Callable[[Any], None], otherwise: Callable[[Any], None] | None = None) -> None:
    """`then(s)` if `test` is true, else `otherwise(s)`."""
    tracer = current_tracer()
    if tracer is not None:
        tracer.cond(s, test, then, otherwise)
    elif test:
        then(s)
    elif otherwise is not None:
        otherwise(s)


def switch(
    s: Any,
    value: Any,
    cases: Mapping[Any, Callable[[Any], None]],
    otherwise: Callable[[Any], None] | None = None,
) -> None:
    """`cases[value](s)`, or `otherwise(s)` where there is none."""
    if not is_abstract(value):
        chosen = cases.get(value, otherwise)
        if chosen is not None:
            chosen(s)
        return
    if not cases:
        if otherwise is not None:
            otherwise(s)
        return
    (first, then), *rest = cases.items()
    cond(s, value == first, then, lambda s: switch(s, value, dict(rest), otherwise))


def loop(s: Any, body: Callable[[Any, Any], None], *, limit: int, until: Callable[[Any], Any] | None = None) -> None:
    """`body(s, i)` for i = 0, 1, ..., until `until(s)` is true after one, and at most `limit` times.

    What goes from one round to the next goes through `s`. Raises ValueError for a limit below 1.
    """
    if not isinstance(limit, int) or limit < 1:
        raise ValueError(f"loop(limit={limit!r}) is not allowed: it is the most rounds there may be, 1 or more")
    tracer = current_tracer()
    if tracer is not None:
        tracer.loop(s, body, limit, until)
        return
    for i in range(limit):
        body(s, i)
        if until is not None and until(s):
            break
