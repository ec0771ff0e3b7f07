"""Groups are checked against all ways of grouping, on small random trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import prefix_groups as module
from engine.executor.base import PrefixGroup, Row
from engine.prefix_groups import prefix_groups
from engine.request import Request, SamplingParams


class Stem:
    def __init__(self, id: int, parent: Stem | None, n_tokens: int) -> None:
        self.id, self.parent, self.n_tokens = id, parent, n_tokens
        self.start = 0 if parent is None else parent.start + parent.n_tokens


class Hold:
    def __init__(self, node: Any) -> None:
        self.node = node


def row(node: Stem, start: int) -> Row:
    request = Request(id=0, key=np.zeros(start + 1, np.int64), params=SamplingParams())
    request.lock = Hold(node)
    return Row(request, start, 1, True)


def saved(groups: tuple[PrefixGroup, ...]) -> int:
    return sum((len(group.rows) - 1) * group.n_tokens for group in groups)


def best_by_trying_all(rows: list[Row]) -> int:
    """Most tokens saved by giving each row one of its ancestors (or none)."""
    options = []
    for entry in rows:
        nodes: list[Any] = [None]
        node = entry.request.lock.node
        while node.parent is not None:
            if node.start + node.n_tokens <= entry.start:
                nodes.append(node)
            node = node.parent
        options.append(nodes)
    best = 0
    stack: list[tuple[int, dict[Any, int]]] = [(0, {})]
    while stack:
        i, counts = stack.pop()
        if i == len(rows):
            best = max(best, sum((n - 1) * (node.start + node.n_tokens) for node, n in counts.items()))
            continue
        for node in options[i]:
            stack.append((i + 1, counts if node is None else {**counts, node: counts.get(node, 0) + 1}))
    return best


@given(
    nodes=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), min_size=1, max_size=6),
    picks=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_groups_save_nearly_as_much_as_the_best_grouping_along_the_tree(
    nodes: list[tuple[int, int]], picks: list[tuple[int, int]]
) -> None:
    module.MIN_TOKENS, before = 1, module.MIN_TOKENS
    try:
        tree = [Stem(0, None, 0)]
        for parent, n in nodes:
            tree.append(Stem(len(tree), tree[parent % len(tree)], n))
        rows = []
        for pick, short in picks:
            node = tree[pick % len(tree)]
            rows.append(row(node, max(0, node.start + node.n_tokens - short)))
        groups = prefix_groups(rows)
    finally:
        module.MIN_TOKENS = before
    grouped = [i for group in groups for i in group.rows]
    assert len(grouped) == len(set(grouped))
    for group in groups:
        assert len(group.rows) >= 2
        assert all(rows[i].start >= group.n_tokens for i in group.rows)
    best = best_by_trying_all(rows)
    assert saved(groups) >= 0.9 * best


def test_short_prefixes_are_not_grouped() -> None:
    node = Stem(1, Stem(0, None, 0), module.MIN_TOKENS - 1)
    assert prefix_groups([row(node, 99), row(node, 99)]) == ()
    node = Stem(1, Stem(0, None, 0), module.MIN_TOKENS)
    assert prefix_groups([row(node, 99), row(node, 99)]) == (PrefixGroup((0, 1), module.MIN_TOKENS),)


@pytest.mark.parametrize("depth", [5000])
def test_a_deep_tree_needs_no_deep_recursion(depth: int) -> None:
    node = Stem(0, None, 0)
    for i in range(1, depth):
        node = Stem(i, node, 1)
    assert prefix_groups([row(node, depth), row(node, depth)]) == (PrefixGroup((0, 1), depth - 1),)
