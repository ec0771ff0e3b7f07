"""What a step is told: packing, page tables, tokens that aren't known yet, prefixes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.executor.base import PrefixGroup, Row
from engine.executor.gpu_plan import Plan, make_plan, shared_queries
from engine.executor.gpu_tables import Tables
from engine.request import PENDING, Request, SamplingParams, Status

CPU = torch.device("cpu")


def request(n_tokens: int, seed: int, *, max_pages: int = 64, page_size: int = 1, **params: int) -> Request:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 1000, n_tokens)
    return Request(
        id=seed,
        key=tokens,
        tokens=tokens,
        n_tokens=n_tokens,
        params=SamplingParams(**params),
        pages=rng.permutation(10_000)[:max_pages].astype(np.int32),
        status=Status.RUNNING,
    )


def tables(*, n_tables: int = 9, max_pages: int = 64, page_size: int = 1) -> Tables:
    return Tables(n_tables=n_tables, max_pages=max_pages, page_size=page_size, device=CPU)


def apply(of: Tables, plan: Plan) -> None:
    of.pages.view(-1)[torch.from_numpy(plan.changes.at)] = torch.from_numpy(plan.changes.pages)


def slots(of: Request, positions: range, page_size: int) -> list[int]:
    return [int(of.pages[p // page_size]) * page_size + p % page_size for p in positions]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_token_of_every_row_is_packed_once_with_its_position_slot_and_table(data: st.DataObject) -> None:
    page_size = data.draw(st.sampled_from([1, 4, 16]))
    there = tables(page_size=page_size)
    requests = [request(60, i) for i in range(data.draw(st.integers(1, 8)))]
    for _ in range(data.draw(st.integers(1, 3))):
        rows = []
        for r in requests:
            start = data.draw(st.integers(0, 59))
            n_new = data.draw(st.sampled_from([1, 1, 2, 7, 60 - start]).filter(lambda n, s=start: n <= 60 - s))
            rows.append(Row(r, start, n_new, sample=data.draw(st.booleans())))
        plan = make_plan(rows, there)
        apply(there, plan)
        stage = plan.stage
        assert sorted(stage.rows.tolist()) == list(range(len(rows)))
        sizes = [rows[i].n_new for i in stage.rows]
        assert all(n > 1 for n in sizes[: stage.n_several])
        assert all(n == 1 for n in sizes[stage.n_several :])
        for k, i in enumerate(stage.rows.tolist()):
            row, span = rows[i], slice(stage.first[k], stage.first[k + 1])
            positions = range(row.start, row.start + row.n_new)
            assert plan.positions[span].tolist() == list(positions)
            assert plan.tokens[span].tolist() == row.request.tokens[positions.start : positions.stop].tolist()
            assert plan.slots[span].tolist() == slots(row.request, positions, page_size)
            assert stage.n_keys[k] == positions.stop
            n_pages = -(-positions.stop // page_size)
            assert there.pages[stage.table[k], :n_pages].tolist() == row.request.pages[:n_pages].tolist()
        wanted = range(len(plan.tokens)) if plan.wanted is None else plan.wanted.tolist()
        for i, row in enumerate(rows):
            own = wanted[plan.first_logit[i] : plan.first_logit[i] + plan.n_logits[i]]
            end = row.start + row.n_new
            assert plan.positions[list(own)].tolist() == list(range(row.logit_start, end))
            k = stage.rows.tolist().index(i)
            assert all(stage.first[k] <= j < stage.first[k + 1] for j in own)


def test_only_new_pages_are_uploaded_until_old_ones_are_replaced() -> None:
    there, one, other = tables(page_size=4), request(60, 1), request(60, 2)
    uploaded = []
    for start, n in ((0, 20), (20, 1), (21, 3), (24, 1)):
        plan = make_plan([Row(one, start, n, False), Row(other, 0, 1, False)], there)
        apply(there, plan)
        uploaded.append(len(plan.changes.at))
    assert uploaded == [5 + 1, 1, 0, 1]
    one.pages[:5] = one.pages[5:10].copy()
    one.pages_version += 1
    plan = make_plan([Row(one, 25, 1, False)], there)
    apply(there, plan)
    assert plan.changes.pages.tolist() == one.pages[:7].tolist()
    assert there.pages[plan.stage.table[0], :7].tolist() == one.pages[:7].tolist()


def test_tables_of_requests_that_run_no_more_are_used_again() -> None:
    there = tables(n_tables=3)
    first = [request(8, i) for i in range(3)]
    taken = make_plan([Row(r, 0, 8, False) for r in first], there).stage.table
    first[1].status = Status.FINISHED
    newcomer = request(8, 9)
    plan = make_plan([Row(newcomer, 0, 8, False), Row(first[0], 7, 1, False)], there)
    assert plan.stage.table[0] == taken[1]
    assert len(plan.changes.at) == 8
    # others run, but none of their tokens is under way: they'll be uploaded anew
    stranger = request(8, 10)
    assert make_plan([Row(stranger, 0, 8, False)], there).stage.table[0] in taken
    assert len(make_plan([Row(newcomer, 7, 1, False)], there).changes.at) == 8


def test_a_table_with_a_token_under_way_is_never_given_away() -> None:
    there = tables(n_tables=2)
    first = [request(8, i) for i in range(2)]
    make_plan([Row(r, 0, 8, True) for r in first], there)
    for r in first:
        r.n_pending = 1
    with pytest.raises(ValueError, match=r"more rows than the 2 page tables.*max_running"):
        make_plan([Row(request(8, 9), 0, 8, False)], there)


def test_what_a_failed_step_may_not_have_uploaded_is_uploaded_again() -> None:
    there, one = tables(), request(8, 1)
    make_plan([Row(one, 0, 5, False)], there)
    there.forget([one])
    assert make_plan([Row(one, 5, 1, False)], there).changes.pages.tolist() == one.pages[:6].tolist()


def test_a_token_that_is_being_chosen_is_named_by_its_table() -> None:
    there, several, single, known = tables(), request(10, 1), request(10, 2), request(10, 3)
    for pending in (several, single):
        pending.tokens[9], pending.n_pending = PENDING, 1
    rows = [Row(known, 9, 1, True), Row(single, 9, 1, True), Row(several, 4, 6, True)]
    plan = make_plan(rows, there)
    assert plan.has_pending
    of = dict(zip(plan.stage.rows.tolist(), plan.stage.table.tolist()))
    assert plan.tokens.tolist() == [*several.tokens[4:9], -1 - of[2], known.tokens[9], -1 - of[1]]
    assert single.tokens[9] == PENDING
    assert not make_plan([rows[0], Row(several, 0, 4, False)], there).has_pending


def test_members_of_a_prefix_group_are_found_in_both_parts() -> None:
    there = tables()
    rows = [Row(request(60, i), *span, True) for i, span in enumerate([(40, 1), (40, 3), (50, 1), (44, 2), (7, 1)])]
    plan = make_plan(rows, there)
    assert plan.stage.rows.tolist() == [1, 3, 0, 2, 4]
    several, single = shared_queries(plan.stage, [PrefixGroup((0, 1, 3), 40), PrefixGroup((2, 4), 5)])
    assert [group.queries.tolist() for group in several] == [[0, 1, 2, 3, 4]]
    assert [group.queries.tolist() for group in single] == [[0], [1, 2]]
    assert [(group.n_rows, group.n_tokens) for group in (*several, *single)] == [(2, 40), (1, 40), (2, 5)]
    assert several[0].table == plan.stage.table[0]
    # in the last layer only what is wanted is left, in another order
    several, single = shared_queries(plan.last, [PrefixGroup((0, 1, 3), 40)])
    assert several == []
    assert plan.last.rows.tolist() == [0, 1, 2, 3, 4]
    assert [group.queries.tolist() for group in single] == [[0, 1, 3]]
