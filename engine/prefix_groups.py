"""Which rows of a batch should read a shared prefix once."""

from __future__ import annotations

from collections.abc import Sequence

from engine.cache.radix_tree import RadixNode
from engine.executor.base import PrefixGroup, Row

MIN_TOKENS = 32
"""Shorter prefixes aren't worth a group."""


def prefix_groups(rows: Sequence[Row]) -> tuple[PrefixGroup, ...]:
    """Groups of rows whose first `n_tokens` tokens live in the same pages, each row in at most one group.

    Chosen to save the most reads of KV: a node shared by k rows saves (k - 1) * (tokens up to its end); a subtree is
    split into its children's groups where these save more. A row's own new tokens never count.
    """
    members: dict[RadixNode, list[int]] = {}
    for i, row in enumerate(rows):
        node = None if row.request.lock is None else row.request.lock.node
        while node is not None and node.parent is not None:
            if node.start + node.n_tokens <= row.start:
                members.setdefault(node, []).append(i)
            node = node.parent

    saved_below: dict[RadixNode, int] = {}
    groups_below: dict[RadixNode, list[PrefixGroup]] = {}
    groups: list[PrefixGroup] = []
    for node in sorted(members, key=lambda node: (-node.start, node.id)):  # children before parents
        inside = members[node]
        end = node.start + node.n_tokens
        saved, found = saved_below.pop(node, 0), groups_below.pop(node, [])
        here = (len(inside) - 1) * end if end >= MIN_TOKENS else 0
        if here > 0 and here >= saved:
            saved, found = here, [PrefixGroup(tuple(inside), end)]
        parent = node.parent
        if parent is None or parent.parent is None:
            groups += found
        elif found:
            saved_below[parent] = saved_below.get(parent, 0) + saved
            groups_below.setdefault(parent, []).extend(found)
    return tuple(sorted(groups))
