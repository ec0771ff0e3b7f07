"""A batch as arrays: all that a step is told, made on the host to be copied over at once.

Packed tokens: rows of several new tokens first, then rows of one, because another kernel answers those. The last layer
answers only the queries whose logits are wanted; they are packed by the same rule, and so are the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engine.executor.base import PrefixGroup, Row
from engine.executor.gpu_tables import NO_CHANGES, Changes, Ints, Tables
from engine.request import PENDING

Longs = npt.NDArray[np.int64]


class Stage(NamedTuple):
    """Packed queries and the rows they belong to: rows of several queries, then rows of one."""

    rows: Longs
    """Rows of the batch in packing order; those without a query aren't among them."""
    first: Ints
    """[rows + 1]: where each row's queries begin."""
    table: Ints
    n_keys: Ints
    n_several: int
    """Rows of several queries."""

    @property
    def n_queries(self) -> int:
        return int(self.first[-1])

    @property
    def queries_of_several(self) -> int:
        return int(self.first[self.n_several])


class Plan(NamedTuple):
    """One step on the host."""

    tokens: Longs
    """[packed tokens]; -1 - t stands for the token that was last sampled for table t."""
    positions: Longs
    slots: Longs
    """Where K and V of each token go."""
    stage: Stage
    """All queries."""
    last: Stage
    """Those of the last layer: the same object when all are wanted."""
    wanted: Longs | None
    """Which packed tokens the last layer answers; None: all, in their order."""
    first_logit: Longs
    """[rows of the batch]: where each one's logits begin among those of the last stage."""
    n_logits: Longs
    """[rows of the batch]"""
    changes: Changes
    """Of the page tables, to be written before the step."""
    has_pending: bool
    """Some tokens are -1 - t."""
    packed: tuple[Row, ...] = ()
    """The rows in the order in which they are packed, where some of their tokens are pictures'; 0 stands for those."""


class SharedQueries(NamedTuple):
    """Queries that share a prefix."""

    queries: Ints
    """Packed, counted from the first of the part (several or one) they are in."""
    n_rows: int
    """That they are queries of."""
    table: int
    n_tokens: int


def make_plan(rows: Sequence[Row], tables: Tables) -> Plan:
    """Plans the step of these rows. From now on the tables hold `changes` to be with the device."""
    n = len(rows)
    start = np.fromiter([row.start for row in rows], np.int64, n)
    n_new = np.fromiter([row.n_new for row in rows], np.int64, n)
    end = start + n_new
    n_logits = end - np.fromiter([row.logit_start for row in rows], np.int64, n)
    table, changes = tables.look_up([row.request for row in rows], end.tolist())
    stage = _stage(n_new, end, table)
    packed = [rows[i] for i in stage.rows.tolist()]
    positions = _runs(start[stage.rows], n_new[stage.rows])
    tokens = np.concatenate([row.request.tokens[row.start : row.start + row.n_new] for row in packed])
    pending = tokens == PENDING
    has_pending = bool(pending.any())
    pictures = (tokens < 0) & ~pending
    has_pictures = bool(pictures.any())
    if has_pictures:
        tokens[pictures] = 0
    if has_pending:
        tokens[pending] = -1 - np.repeat(stage.table, n_new[stage.rows])[pending]
    last, wanted = stage, None
    if (n_logits < n_new).any():
        last = _stage(n_logits, end, table)
        ends = np.empty(n, np.int64)
        ends[stage.rows] = stage.first[1:]
        wanted = _runs(ends[last.rows] - n_logits[last.rows], n_logits[last.rows])
    first_logit = np.zeros(n, np.int64)
    first_logit[last.rows] = last.first[:-1]
    return Plan(
        tokens,
        positions,
        _slots(packed, n_new[stage.rows], positions, tables.page_size),
        stage,
        last,
        wanted,
        first_logit,
        n_logits,
        changes,
        has_pending,
        tuple(packed) if has_pictures else (),
    )


def decodes_only(plan: Plan) -> bool:
    """Every row has one new token, whose logits are wanted."""
    return plan.wanted is None and plan.stage.n_several == 0


def idle_decodes(n: int) -> Plan:
    """A step of n rows that decode without a key, and store nothing."""
    zeros, rows, nobody = np.zeros(n, np.int64), np.arange(n), np.zeros(n, np.int32)
    stage = Stage(rows, np.arange(n + 1, dtype=np.int32), nobody, nobody, n_several=0)
    ones = np.ones(n, np.int64)
    return Plan(zeros, zeros, zeros - 1, stage, stage, None, rows, ones, NO_CHANGES, has_pending=False)


def shared_queries(stage: Stage, groups: Sequence[PrefixGroup]) -> tuple[list[SharedQueries], list[SharedQueries]]:
    """The groups' queries among the rows of several and among the rows of one, each counted from its part's first.

    A group whose rows are in both parts is read by each of them.
    """
    place = {row: i for i, row in enumerate(stage.rows.tolist())}
    several: list[SharedQueries] = []
    single: list[SharedQueries] = []
    for group in groups:
        there = sorted(place[row] for row in group.rows if row in place)
        for part, members, offset in (
            (several, [i for i in there if i < stage.n_several], 0),
            (single, [i for i in there if i >= stage.n_several], stage.queries_of_several),
        ):
            if members:
                begin = stage.first[:-1][members].astype(np.int64) - offset
                queries = _runs(begin, np.diff(stage.first)[members]).astype(np.int32)
                part.append(SharedQueries(queries, len(members), int(stage.table[members[0]]), group.n_tokens))
    return several, single


def _stage(n_queries: Longs, n_keys: Longs, table: Ints) -> Stage:
    """Stable: within each part, rows stay in the batch's order."""
    several, single = np.flatnonzero(n_queries > 1), np.flatnonzero(n_queries == 1)
    rows = np.concatenate((several, single))
    first = np.zeros(len(rows) + 1, np.int32)
    np.cumsum(n_queries[rows], out=first[1:])
    return Stage(rows, first, table[rows], n_keys[rows].astype(np.int32), len(several))


def _runs(begin: Longs, n: Longs) -> Longs:
    """begin[0], begin[0] + 1, ... (n[0] of them), begin[1], ..."""
    return np.repeat(begin - (np.cumsum(n) - n), n) + np.arange(n.sum())


def _slots(rows: Sequence[Row], n_new: Longs, positions: Longs, page_size: int) -> Longs:
    """Slots of the packed tokens."""
    if page_size == 1:
        return np.concatenate([row.request.pages[row.start : row.start + row.n_new] for row in rows]).astype(np.int64)
    pages = [row.request.pages[row.start // page_size : (row.start + row.n_new - 1) // page_size + 1] for row in rows]
    n_pages = np.fromiter(map(len, pages), np.int64, len(pages))
    first_page = np.fromiter([row.start // page_size for row in rows], np.int64, len(rows))
    at = positions // page_size + np.repeat(np.cumsum(n_pages) - n_pages - first_page, n_new)
    return np.concatenate(pages)[at].astype(np.int64) * page_size + positions % page_size
