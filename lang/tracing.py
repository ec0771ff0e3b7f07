"""Which trace is going on, if one is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lang.graph.tracer import Tracer

_current: ContextVar[Tracer | None] = ContextVar("tracer", default=None)


def current_tracer() -> Tracer | None:
    return _current.get()


@contextmanager
def tracing(tracer: Tracer) -> Iterator[None]:
    token = _current.set(tracer)
    try:
        yield
    finally:
        _current.reset(token)
