"""Who reads which range of a shared prefix, and whether sharing pays: decided on the host, before each step.

Work is cut in items of up to `lines_of` queries x heads over a range of keys, such that all kv heads together make
about PROGRAMS programs a processor, all running at once. A range is no shorter than LEAST keys: each costs its queries
a partial result, which is written and read again.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]

PROGRAMS = 2
"""A processor runs two at a time (shared memory for queries and three stages of keys)."""
LEAST = 256
"""Keys a range: 64 queries at head size 128 then write at most a quarter of the bytes that the keys are."""
STEP = 64
"""Ranges end at multiples of this many keys: no tile of keys is cut but the prefix's last."""
LAUNCH_BYTES = 64 * 1024
"""What a launch is taken to cost, in bytes that a processor could have read: about 2 microseconds by an H200's data
sheet (4.8 TB/s over 132 processors)."""


class SharedPlan(NamedTuple):
    """`SharedPrefixes` on the host: the same fields in the same order, int32."""

    query: Ints
    n_items: Ints
    item_first: Ints
    item_queries: Ints
    item_table: Ints
    item_begin: Ints
    item_end: Ints
    item_part: Ints
    n_shared: Ints
    n_parts: Ints
    max_parts: int


def lines_of(n_queries: int, heads_per_kv: int) -> int:
    """Lines (queries x heads of one kv head) of an item's tile, for a batch of n_queries packed queries.

    Never less for more queries: a plan for a batch fits a launch for a padded one.
    """
    fits = 1 << (heads_per_kv - 1).bit_length()
    return max(fits, 128 if n_queries * heads_per_kv >= 512 else 64)


def plan_shared_prefixes(
    groups: Sequence[tuple[Ints, int, int]],
    n_queries: int,
    *,
    heads_per_kv: int,
    processors: int,
    kv_heads: int,
) -> SharedPlan:
    """groups: (packed queries, row of `Rows.tables`, tokens of the prefix) of each, no query in two.

    n_queries: packed queries of the whole batch, those in no group included. Longest items first.
    Raises ValueError for a query in two groups or outside the batch, and for an empty prefix.
    """
    groups = [group for group in groups if len(group[0])]
    members = np.concatenate([np.zeros(0, np.int32), *(np.asarray(group[0], np.int32) for group in groups)])
    _check(members, groups, n_queries)
    sizes = np.array([len(group[0]) for group in groups], np.int64)
    tokens = np.array([group[2] for group in groups], np.int64)
    block = lines_of(n_queries, heads_per_kv) // heads_per_kv
    n_blocks = ceil_div(sizes, block)
    most = _most_keys(tokens, n_blocks, PROGRAMS * processors // kv_heads)
    n_ranges = ceil_div(tokens, most)
    per_range = ceil_div(ceil_div(tokens, n_ranges), STEP) * STEP

    firsts = np.concatenate([[0], sizes.cumsum()])
    n_shared, n_parts = np.zeros(n_queries, np.int32), np.zeros(n_queries, np.int32)
    items: list[NDArray[np.int64]] = []
    for i in np.argsort(-per_range, kind="stable"):
        in_group = members[firsts[i] : firsts[i + 1]]
        n_shared[in_group], n_parts[in_group] = tokens[i], n_ranges[i]
        part, at = np.divmod(np.arange(n_ranges[i] * n_blocks[i]), n_blocks[i])
        items.append(
            np.stack(
                [
                    firsts[i] + at * block,
                    np.minimum(block, sizes[i] - at * block),
                    np.full_like(at, groups[i][1]),
                    part * per_range[i],
                    np.minimum((part + 1) * per_range[i], tokens[i]),
                    part,
                ]
            )
        )
    columns = np.concatenate([np.zeros((6, 0), np.int64), *items], axis=1).astype(np.int32)
    return SharedPlan(
        members,
        np.array([columns.shape[1]], np.int32),
        columns[0],
        columns[1],
        columns[2],
        columns[3],
        columns[4],
        columns[5],
        n_shared,
        n_parts,
        int(n_ranges.max(initial=0)),
    )


def pays(
    n_members: int,
    n_tokens: int,
    *,
    heads_per_kv: int,
    kv_heads: int,
    processors: int,
    head_dim: int = 128,
    kv_bytes: int = 2,
    n_rows: int | None = None,
) -> bool:
    """Whether n_members queries should read their common n_tokens once, counted in bytes through device memory.

    n_rows: how many rows the queries are of (decoding: one each): without sharing each row reads the prefix. Sharing
    costs two launches more (this one and the merge) and float32 results of the prefix's ranges and of the members' own
    keys, written and read again. The operations are the same either way, on matrix units that are idle without sharing.
    """
    prefix = n_tokens * kv_heads * 2 * head_dim * kv_bytes
    saved = ((n_members if n_rows is None else n_rows) - 1) * prefix
    wanted = max(1, PROGRAMS * processors // kv_heads)
    ranges = min(wanted, -(-n_tokens // LEAST))
    results = 2 * (ranges + 1) * n_members * kv_heads * heads_per_kv * 4 * (head_dim + 1)
    return saved > results + 2 * LAUNCH_BYTES * processors


def ceil_div(a: NDArray[np.int64], b: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """a / b rounded up."""
    return -(-a // b)


def _most_keys(tokens: NDArray[np.int64], n_blocks: NDArray[np.int64], wanted: int) -> int:
    """Fewest keys a range, in STEPs, at which there are no more items than wanted; all keys if there always are."""
    longest = -(-int(tokens.max(initial=1)) // STEP)
    steps = range(min(LEAST // STEP, longest), longest)

    def fits(step: int) -> bool:
        return int((ceil_div(tokens, step * STEP) * n_blocks).sum()) <= wanted

    found = bisect.bisect_left(steps, True, key=fits)
    return STEP * (steps[found] if found < len(steps) else longest)


def _check(members: Ints, groups: Sequence[tuple[Ints, int, int]], n_queries: int) -> None:
    if len(members) and (members.min() < 0 or members.max() >= n_queries):
        raise ValueError(f"a group has query {members.max()} or {members.min()}; the batch has 0 .. {n_queries - 1}")
    queries, times = np.unique(members, return_counts=True)
    if len(queries) < len(members):
        raise ValueError(f"queries {queries[times > 1].tolist()} are in two groups; a query may share one prefix")
    for _, table, n_tokens in groups:
        if n_tokens < 1:
            raise ValueError(f"a group of table {table} shares {n_tokens} tokens: leave it out")
