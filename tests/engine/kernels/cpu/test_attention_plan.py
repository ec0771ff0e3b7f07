"""Whatever the batch, each query meets each key it may see exactly once."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.kernels.cpu.attention_plan import Group, Padded, Plan, Span, make_plan


def seen_keys(plan: Plan) -> list[Counter[int]]:
    """For each packed query, the slots it attends to."""
    seen: list[Counter[int]] = [Counter() for _ in range(plan.n_queries)]

    def batch(padded: Padded, causal: bool) -> None:
        slots = padded.slots.reshape(padded.n, padded.keys)
        assert np.array_equal(padded.query[padded.place], padded.packed)
        for place, packed in zip(padded.place, padded.packed):
            row, i = divmod(int(place), padded.queries)
            seen[packed].update(slots[row, : i + 1 if causal else padded.n_keys[row]].tolist())

    for padded in plan.causal:
        batch(padded, causal=True)
    for padded in plan.single:
        assert padded.queries == 1
        batch(padded, causal=False)
    for context in plan.contexts:
        for query in range(context.a, context.b):
            seen[query].update(context.slots.tolist())
    for masked in plan.masked:
        for query in range(masked.a, masked.b):
            seen[query].update(masked.slots[masked.visible[query - masked.a]].tolist())
    return seen


@given(st.data())
def test_each_query_sees_each_of_its_keys_once(data: st.DataObject) -> None:
    groups: list[Group] = []
    spans: list[Span] = []
    expected: list[range] = []
    window = data.draw(st.none() | st.integers(1, 30), "window")
    rows: list[tuple[int, int]] = []  # (group or -1, shared tokens)
    for _ in range(data.draw(st.integers(0, 3), "groups")):
        members, shared = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 20))
        groups.append(Group(len(rows), len(rows) + members, shared))
        rows += [(len(groups) - 1, shared)] * members
    rows += [(-1, 0)] * data.draw(st.integers(0, 4), "lone rows")
    for i, (group, shared) in enumerate(rows):
        first = data.draw(st.integers(shared, shared + 10))
        n = data.draw(st.integers(0, 3) | st.integers(250, 270) | st.integers(0, 40))
        base, common = 10_000 * (i + 1), 1_000_000 + 1000 * group

        def slots(a: int, b: int, base: int = base, shared: int = shared, common: int = common) -> np.ndarray:
            at = np.arange(a, b)
            return np.where(at < shared, common + at, base + at)

        spans.append(Span(first, first + n, slots))
        for position in range(first, first + n):
            start = 0 if window is None else max(0, position - window + 1)
            expected.append(slots(start, position + 1))
    plan = make_plan(spans, groups, window)
    assert plan.n_queries == len(expected)
    for found, keys in zip(seen_keys(plan), expected, strict=True):
        assert found == Counter(keys.tolist())


def test_a_group_without_queries_reads_nothing() -> None:
    spans = [Span(8, 8, np.arange), Span(8, 8, np.arange), Span(3, 5, np.arange)]
    plan = make_plan(spans, [Group(0, 2, 8)])
    assert plan.contexts == (), "PyTorch's kernel ends the process where there is no query"
    assert plan.n_queries == 2


def test_little_of_a_batch_is_padding() -> None:
    lengths = [3, 100, 5, 97, 90, 4, 101]
    spans = [Span(n - 1, n, lambda a, b: np.arange(a, b)) for n in lengths]
    batches = make_plan(spans).single
    assert sorted(padded.n for padded in batches) == [3, 4]
    assert sum(padded.n * padded.keys for padded in batches) < 1.3 * sum(lengths)
