"""Which rows of a batch should read a shared prefix once."""

from __future__ import annotations

from collections.abc import Sequence

from engine.cache.radix_tree import RadixNode
from engine.executor.base import PrefixGroup, Row

MIN_TOKENS = 32
"""Shorter prefixes aren't worth a group."""


def prefix_groups(rows: Sequence[Row]) -> tuple[PrefixGroup, ...]:
    """Groups of rows whose first `n_tokens` tokens live in the same pages, each row in at most one group.

    A group of k rows saves (k - 1) * n_tokens reads of KV. Greedy, from the leaves of the tree up: at each node that
    two rows or more have passed, those in no group yet form one, and take in a group from below where that saves
    more. A row's own new tokens never count.
    """
    members: dict[RadixNode, list[int]] = {}
    for i, row in enumerate(rows):
        node = None if row.request.lock is None else row.request.lock.node
        while node is not None and node.parent is not None:
            if node.start + node.n_tokens <= row.start:
                members.setdefault(node, []).append(i)
            node = node.parent

    group_of: dict[int, PrefixGroup] = {}
    for node in sorted(members, key=lambda node: (-node.start, node.id)):  # children before parents
        inside, end = members[node], node.start + node.n_tokens
        if len(inside) < 2 or end < MIN_TOKENS:
            continue
        below = {group for i in inside if (group := group_of.get(i)) is not None}
        weak = {group for group in below if _saved(group) < len(group.rows) * end}
        best, chosen = -1, PrefixGroup((), 0)
        for dissolved in (set(), weak, below):
            kept = below - dissolved
            joining = PrefixGroup(tuple(i for i in inside if group_of.get(i) not in kept), end)
            saved = _saved(joining) + sum(map(_saved, kept))
            if saved > best:
                best, chosen = saved, joining
        if len(chosen.rows) >= 2:
            group_of |= dict.fromkeys(chosen.rows, chosen)
    return tuple(sorted(set(group_of.values())))


def _saved(group: PrefixGroup) -> int:
    """Reads of KV that the group saves, tokens."""
    return max(0, len(group.rows) - 1) * group.n_tokens
