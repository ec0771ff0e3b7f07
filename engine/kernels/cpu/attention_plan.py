"""Which queries of a batch meet which keys, in few calls: made once a step, used by every layer.

Queries of all rows are packed one row after another. Each query needs the keys of its row up to itself, and gets them
in parts that are merged by log-sum-exp:
  - `contexts`: a run of queries that all see some earlier keys (a prefix shared by several rows, or a row's own);
  - `causal`: rows of several queries over their own keys, batched by length, padded at the end (causality hides it);
  - `single`: rows of one query over the keys that no context covers, batched by length, the padding masked;
  - `masked`: rows of several queries under a sliding window.
Every query is in exactly one of the last three, and in any number of contexts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Index = npt.NDArray[np.int64]
ALONE = 256
"""Rows of at least this many queries aren't batched with others."""
WASTE = 1.25
"""Padding may make a batch this much larger than its rows."""
GAP = 64
"""More earlier keys of a row alone than this are a context of their own; fewer join its causal part."""
MASK_QUERIES = 512
"""Queries of one masked call: its mask has queries * keys numbers."""


class Span(NamedTuple):
    """One row: the queries at positions [first, end), over the keys at positions [0, end)."""

    first: int
    end: int
    slots: Callable[[int, int], Index]
    """Where K and V of the positions [a, b) live in the pool."""


class Group(NamedTuple):
    """Spans [a, b) whose first `n_tokens` keys live in the same slots."""

    a: int
    b: int
    n_tokens: int


class Context(NamedTuple):
    a: int
    b: int
    """Packed queries [a, b)."""
    slots: Index


class Padded(NamedTuple):
    """`n` rows of at most `queries` queries and `keys` keys each."""

    n: int
    queries: int
    keys: int
    query: Index
    """[n * queries]: packed query at each place; padding repeats the row's first or last."""
    slots: Index
    """[n * keys]: slot of each key; padding repeats the row's last."""
    n_keys: Index
    """[n]: keys of each row that count."""
    place: Index
    """[packed queries of these rows]: where each is in `query`."""
    packed: Index
    """[packed queries of these rows]: which each is."""


class Masked(NamedTuple):
    a: int
    b: int
    slots: Index
    visible: npt.NDArray[np.bool_]
    """[queries, keys]"""


class Plan(NamedTuple):
    n_queries: int
    contexts: tuple[Context, ...]
    causal: tuple[Padded, ...]
    single: tuple[Padded, ...]
    masked: tuple[Masked, ...]


class _Part(NamedTuple):
    at: int
    n_queries: int
    slots: Index
    places: int
    """The queries are the last `n_queries` of so many places (before them stands padding)."""


def make_plan(spans: Sequence[Span], groups: Sequence[Group] = (), window: int | None = None) -> Plan:
    """The plan for spans in packing order.

    groups: runs of spans that share a prefix, each span in at most one, ending at or before the span's first query.
    window: sliding window, tokens; the query at p sees positions above p - window. Then nothing is shared.
    """
    at = np.cumsum([0, *(span.end - span.first for span in spans)]).tolist()
    if window is not None and all(span.end <= window for span in spans):
        window = None
    covered = [0] * len(spans)
    contexts: list[Context] = []
    for group in groups if window is None else ():
        if at[group.a] < at[group.b]:  # in the last layer, perhaps none of them has a query
            contexts.append(Context(at[group.a], at[group.b], spans[group.a].slots(0, group.n_tokens)))
        covered[group.a : group.b] = [group.n_tokens] * (group.b - group.a)
    causal: list[_Part] = []
    single: list[_Part] = []
    masked: list[Masked] = []
    for i, span in enumerate(spans):
        n = span.end - span.first
        if n == 1:
            start = covered[i] if window is None else max(0, span.end - window)
            single.append(_Part(at[i], 1, span.slots(start, span.end), 1))
        elif window is not None and n > 1:
            masked += _under_window(span, at[i], window)
        elif n > 1:
            start = covered[i]
            if span.first - start > GAP:
                contexts.append(Context(at[i], at[i + 1], span.slots(start, span.first)))
                start = span.first
            causal.append(_Part(at[i], n, span.slots(start, span.end), span.end - start))
    return Plan(at[-1], tuple(contexts), _batches(causal), _batches(single), tuple(masked))


def _under_window(span: Span, at: int, window: int) -> list[Masked]:
    parts = []
    for first in range(span.first, span.end, MASK_QUERIES):
        end = min(first + MASK_QUERIES, span.end)
        start = max(0, first - window + 1)
        query, key = np.arange(first, end)[:, None], np.arange(start, end)
        visible = (key <= query) & (key > query - window)
        a = at + first - span.first
        parts.append(Masked(a, a + end - first, span.slots(start, end), visible))
    return parts


def _batches(parts: list[_Part]) -> tuple[Padded, ...]:
    """Rows of similar length together, so that little of a batch is padding."""
    parts = sorted(parts, key=lambda part: len(part.slots))
    batches: list[Padded] = []
    batch: list[_Part] = []
    total = 0
    for part in parts:
        n = len(part.slots)
        if batch and ((n >= ALONE and part.n_queries > 1) or n * (len(batch) + 1) > WASTE * (total + n)):
            batches.append(_pad(batch))
            batch, total = [], 0
        batch.append(part)
        total += n
    if batch:
        batches.append(_pad(batch))
    return tuple(batches)


def _pad(parts: list[_Part]) -> Padded:
    n_keys = np.array([len(part.slots) for part in parts], np.int64)
    n_queries = np.array([part.n_queries for part in parts], np.int64)[:, None]
    places = np.array([part.places for part in parts], np.int64)[:, None]
    keys, queries = int(n_keys.max()), int(places.max())
    slots = np.empty((len(parts), keys), np.int64)
    for row, part in zip(slots, parts):
        row[: len(part.slots)] = part.slots
        row[len(part.slots) :] = part.slots[-1]
    at = np.array([part.at for part in parts], np.int64)
    which = np.arange(queries) - (places - n_queries)
    query = at[:, None] + np.clip(which, 0, n_queries - 1)
    place = np.flatnonzero((which >= 0) & (which < n_queries))
    flat = query.reshape(-1)
    return Padded(len(parts), queries, keys, flat, slots.reshape(-1), n_keys, place, flat[place])
