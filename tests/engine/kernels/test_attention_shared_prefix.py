"""Sharing a prefix changes what is read, not what is computed: with it, without it and in float64 it is the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from engine.kernels.attention_decode import attention_decode, attention_decode_reference
from engine.kernels.attention_shared_prefix import (
    attention_shared_prefix,
    attention_shared_prefix_reference,
    cases,
    pays,
    plan_shared_prefixes,
)
from engine.kernels.paged import PagedKV, Rows, SharedPrefixes
from engine.kernels.shared_prefix_plan import SharedPlan, lines_of
from engine.kernels.tiles import Gpu, Tile, target

LIMIT = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TILE = Tile({"BLOCK_M": 64, "BLOCK_N": 16}, 4, 2)
HALVES = Tile({"BLOCK_M": 32, "BLOCK_N": 16}, 4, 2)
"""An item of 64 lines is taken by two programs."""
DECODE = Tile({"BLOCK_N": 16, "LEAST": 32, "PROGRAMS": 8}, 4, 2)


class Tree(NamedTuple):
    """Rows as (branch, keys of its own); branch -1 is in no group."""

    prefixes: Sequence[int]
    rows: Sequence[tuple[int, int]]


TREES = {
    "two branches": Tree([37], [(0, 1), (0, 20)]),
    "several groups, rows in none, padding": Tree(
        [50, 17], [(0, 1), (1, 5), (-1, 40), (0, 33), (-1, 0), (1, 1), (0, 2)]
    ),
    "one page": Tree([16], [(0, 16), (-1, 1), (0, 1)]),
    "nobody shares": Tree([], [(-1, 3), (-1, 0)]),
}


class Made(NamedTuple):
    q: torch.Tensor
    kv: PagedKV
    rows: Rows
    groups: list[tuple[np.ndarray, int, int]]


def made(
    tree: Tree,
    heads: int,
    kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kv_dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Made:
    """Members share the pages of their prefix, its last page too; what no row's table leads to is poisoned."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [n + (tree.prefixes[branch] if branch >= 0 else 0) for branch, n in tree.rows]
    width = -(-max(lengths) // page_size) + 1
    n_pages = width * (len(lengths) + len(tree.prefixes)) + 2
    order = torch.randperm(n_pages, generator=generator).int()
    tables = order[: width * len(lengths)].view(len(lengths), width).clone()
    owners = order[width * len(lengths) :]
    for branch, n_tokens in enumerate(tree.prefixes):
        # Whole pages are shared; the tokens of a page cut by the prefix's end are copied below.
        tables[[b == branch for b, _ in tree.rows], : n_tokens // page_size] = owners[
            branch * width : branch * width + n_tokens // page_size
        ]
    slots = n_pages * page_size
    pool = [torch.randn(kv_heads, slots, head_dim, generator=generator) for _ in "kv"]

    def slot(row: int, position: int) -> int:
        return int(tables[row, position // page_size]) * page_size + position % page_size

    groups, used = [], torch.zeros(slots, dtype=torch.bool)
    for branch, n_tokens in enumerate(tree.prefixes):
        members = [row for row, (b, _) in enumerate(tree.rows) if b == branch]
        groups.append((np.array(members, np.int32), members[0], n_tokens))
        for position in range(n_tokens // page_size * page_size, n_tokens):
            for row in members[1:]:
                for x in pool:
                    x[:, slot(row, position)] = x[:, slot(members[0], position)]
    for row, n in enumerate(lengths):
        for position in range(n):
            used[slot(row, position)] = True
    scales: list[torch.Tensor | None] = [None, None]
    for i, x in enumerate(pool):
        if kv_dtype is None:
            x[:, ~used] = torch.nan
            pool[i] = x.to(dtype)
        else:
            scale = x.abs().amax(-1) / (127 if kv_dtype == torch.int8 else 448)
            stored = x / scale[..., None]
            pool[i] = (stored.round() if kv_dtype == torch.int8 else stored).to(kv_dtype)
            scale[:, ~used] = torch.nan
            scales[i] = scale.to(device)
    kv = PagedKV(pool[0].to(device), pool[1].to(device), page_size, scales[0], scales[1])
    n = torch.arange(len(lengths) + 1, dtype=torch.int32, device=device)
    n_keys = torch.tensor(lengths, dtype=torch.int32, device=device)
    q = torch.randn(len(lengths), heads, head_dim, generator=generator).to(device, dtype)
    return Made(q, kv, Rows(tables.to(device), n[:-1], n_keys, n), groups)


def planned(made: Made, processors: int = 132) -> SharedPlan:
    kv_heads = made.kv.k.shape[0]
    return plan_shared_prefixes(
        made.groups,
        len(made.q),
        heads_per_kv=made.q.shape[1] // kv_heads,
        processors=processors,
        kv_heads=kv_heads,
    )


def on(device: torch.device, plan: SharedPlan, *, spare: int = 0) -> SharedPrefixes:
    """The plan on the device; `spare` entries of rubbish behind every array of items, as in a graph's buffers."""
    rubbish = np.full(spare, 1 << 30, np.int32)
    arrays = {
        name: np.concatenate([x, rubbish]) if name.startswith("item_") or name == "query" else x
        for name, x in plan._asdict().items()
        if isinstance(x, np.ndarray)
    }
    return SharedPrefixes(
        **{name: torch.from_numpy(x).to(device) for name, x in arrays.items()}, max_parts=plan.max_parts + spare
    )


def exact(made: Made, **options: Any) -> torch.Tensor:
    kv = made.kv if made.kv.k_scale is not None else made.kv._replace(k=made.kv.k.double(), v=made.kv.v.double())
    return attention_decode_reference(made.q.double(), kv, made.rows, max_keys=0, **options)


def distance(out: torch.Tensor, expected: torch.Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


def shared_decode(made: Made, groups: SharedPrefixes, tile: Tile = TILE, **options: Any) -> torch.Tensor:
    parts = attention_shared_prefix(made.q, made.kv, made.rows, groups, tile=tile, **options)
    for query, n in enumerate(groups.n_parts.tolist()):  # nothing but what was promised may be read
        parts.out[n:, query], parts.lse[n:, query] = torch.nan, torch.nan
    out = torch.full_like(made.q, torch.nan)
    most = int(made.rows.n_keys.max())
    return attention_decode(
        made.q, made.kv, made.rows, max_keys=most, shared=groups, parts=parts, out=out, tile=DECODE, **options
    )


def check(made: Made, groups: SharedPrefixes, **options: Any) -> None:
    expected = exact(made, **options)
    limit = LIMIT[made.q.dtype]
    assert distance(shared_decode(made, groups, **options), expected) < limit
    alone = torch.full_like(made.q, torch.nan)
    attention_decode(
        made.q, made.kv, made.rows, max_keys=int(made.rows.n_keys.max()), out=alone, tile=DECODE, **options
    )
    assert distance(alone, expected) < limit


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "page_size", "dtype"),
    [
        (2, 2, 64, 1, torch.float32),
        (8, 2, 80, 16, torch.bfloat16),
        (7, 1, 36, 3, torch.float16),
        (8, 1, 128, 4, torch.float32),
    ],
)
def test_sharing_gives_the_same_as_not_sharing(name, heads, kv_heads, head_dim, page_size, dtype, device) -> None:
    tree = made(TREES[name], heads, kv_heads, head_dim, page_size, dtype, device)
    check(tree, on(device, planned(tree)))


@pytest.mark.parametrize("seed", range(4))
def test_any_tree_shares(seed, device) -> None:
    random = np.random.default_rng(seed)
    prefixes = random.integers(1, 150, size=random.integers(1, 4)).tolist()
    rows = [
        (branch, int(random.integers(1, 60))) for branch in range(len(prefixes)) for _ in range(random.integers(1, 4))
    ]
    rows += [(-1, int(random.integers(0, 60))) for _ in range(random.integers(0, 3))]
    tree = Tree(prefixes, [rows[i] for i in random.permutation(len(rows))])
    page_size = int(random.integers(1, 8))
    given = made(tree, 4, 2, 48, page_size, torch.float32, device, seed=seed)
    check(given, on(device, planned(given)))


def test_a_prefix_cut_in_many_ranges_is_one_prefix(device, monkeypatch) -> None:
    monkeypatch.setattr("engine.kernels.shared_prefix_plan.LEAST", 16)
    monkeypatch.setattr("engine.kernels.shared_prefix_plan.STEP", 16)
    tree = made(Tree([100, 33], [(0, 1), (1, 9), (0, 7), (1, 2)]), 2, 1, 64, 1, torch.float32, device)
    for processors, n_parts in ((1, 1), (3, 4), (132, 7)):
        plan = planned(tree, processors)
        assert plan.max_parts == n_parts
        check(tree, on(device, plan))


def test_more_members_than_an_item_holds(device) -> None:
    tree = made(Tree([20], [(0, 1 + i % 2) for i in range(11)]), 7, 1, 32, 1, torch.float32, device)
    plan = planned(tree)
    assert plan.item_queries.tolist() == [9, 2]  # 9 queries of 7 heads fill 64 lines
    check(tree, on(device, plan))
    assert distance(shared_decode(tree, on(device, plan, spare=1), HALVES), exact(tree)) < 1e-5


@pytest.mark.parametrize("kv_dtype", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_prefix_is_read_as_stored_times_scale(kv_dtype, device) -> None:
    if kv_dtype == torch.float8_e4m3fn and device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("float8 needs compute capability 8.9")
    for dtype in (torch.bfloat16, torch.float32):
        tree = made(TREES["two branches"], 4, 2, 80, 3, dtype, device, kv_dtype=kv_dtype)
        check(tree, on(device, planned(tree)))


def test_soft_cap_and_scale_hold_in_prefix_and_tail(device) -> None:
    tree = made(TREES["two branches"], 4, 2, 64, 1, torch.float32, device)
    check(tree._replace(q=20 * tree.q), on(device, planned(tree)), soft_cap=15.0, scale=0.2)


def test_arrays_longer_than_what_counts_change_nothing(device) -> None:
    """A graph replays with arrays of fixed size: what lies behind the last item is never looked at."""
    tree = made(TREES["several groups, rows in none, padding"], 4, 2, 64, 3, torch.float32, device)
    check(tree, on(device, planned(tree), spare=3))


def test_a_graph_for_groups_replays_without_any(device) -> None:
    tree = made(TREES["nobody shares"], 4, 2, 64, 1, torch.float32, device)
    check(tree, on(device, planned(tree), spare=2))


def test_parts_are_those_of_the_reference(device) -> None:
    """Also for packed queries of prompt rows: several queries of one row in one group."""
    tree = made(Tree([70, 20], [(0, 1)] * 5 + [(-1, 3)] + [(1, 2)] * 2), 4, 2, 64, 3, torch.float32, device)
    with target(Gpu("", 90, 132)):
        groups = on(device, planned(tree))
    parts = attention_shared_prefix(tree.q, tree.kv, tree.rows, groups, tile=TILE)
    wide = tree.kv._replace(k=tree.kv.k.double(), v=tree.kv.v.double())
    expected = attention_shared_prefix_reference(tree.q.double(), wide, tree.rows, groups)
    written = ~expected.lse.isnan()
    assert written.any(0)[:, 0].tolist() == [True] * 5 + [False] + [True] * 2
    assert distance(parts.out[written], expected.out[written]) < 1e-5
    assert distance(parts.lse[written], expected.lse[written]) < 1e-5


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_reads_every_key_for_every_member_once(seed) -> None:
    random = np.random.default_rng(seed)
    n_queries = int(random.integers(1, 400))
    shuffled = random.permutation(n_queries).astype(np.int32)
    cuts = np.sort(random.integers(0, n_queries + 1, size=random.integers(1, 6)))
    groups = [
        (members, i, int(random.integers(1, 9000)))
        for i, members in enumerate(np.split(shuffled, cuts)[:-1])
        if len(members)
    ]
    heads_per_kv, kv_heads, processors = int(random.choice([1, 4, 7, 8])), int(random.choice([1, 8, 32])), 132
    plan = plan_shared_prefixes(groups, n_queries, heads_per_kv=heads_per_kv, processors=processors, kv_heads=kv_heads)
    assert plan.n_items[0] == len(plan.item_first)
    read = {(int(query), part): [] for query in range(n_queries) for part in range(plan.n_parts[query])}
    for i in range(int(plan.n_items[0])):
        assert plan.item_queries[i] * heads_per_kv <= lines_of(n_queries, heads_per_kv)
        for query in plan.query[plan.item_first[i] : plan.item_first[i] + plan.item_queries[i]]:
            read[int(query), int(plan.item_part[i])].append((int(plan.item_begin[i]), int(plan.item_end[i])))
    for members, _, n_tokens in groups:
        for query in members:
            ranges = [read.pop((int(query), part)) for part in range(plan.n_parts[query])]
            assert all(len(found) == 1 for found in ranges)
            ends = [0] + [found[0][1] for found in ranges]
            assert [found[0][0] for found in ranges] == ends[:-1]
            assert all(begin < end for begin, end in pairwise(ends))
            assert ends[-1] == n_tokens == plan.n_shared[query]
    assert not read
    assert plan.max_parts == plan.n_parts.max(initial=0)


def test_a_plan_fills_the_processors_once() -> None:
    """64 branches of 4096 tokens, 32 kv heads, on 132 processors: 8 ranges for each head, 256 programs."""
    plan = plan_shared_prefixes(
        [(np.arange(64, dtype=np.int32), 0, 4096)], 64, heads_per_kv=1, processors=132, kv_heads=32
    )
    assert plan.max_parts == 8
    assert set((plan.item_end - plan.item_begin).tolist()) == {512}


def test_long_prefixes_go_first() -> None:
    groups = [(np.array([0, 1], np.int32), 0, 300), (np.array([2, 3], np.int32), 1, 9000)]
    plan = plan_shared_prefixes(groups, 4, heads_per_kv=1, processors=4, kv_heads=1)
    assert plan.item_table[0] == 1


def test_a_padded_batch_has_room_for_the_plan_of_a_smaller_one() -> None:
    for heads_per_kv in (1, 3, 7, 8, 71):
        lines = [lines_of(n, heads_per_kv) for n in range(1, 2000)]
        assert lines == sorted(lines)
        assert lines[0] >= heads_per_kv


def test_what_cannot_be_planned_is_refused() -> None:
    one = np.array([0, 1], np.int32)
    options = {"heads_per_kv": 1, "processors": 4, "kv_heads": 1}
    with pytest.raises(ValueError, match="two groups"):
        plan_shared_prefixes([(one, 0, 5), (one[1:], 1, 7)], 2, **options)
    with pytest.raises(ValueError, match=r"0 \.\. 0"):
        plan_shared_prefixes([(one, 0, 5)], 1, **options)
    with pytest.raises(ValueError, match="leave it out"):
        plan_shared_prefixes([(one, 0, 0)], 2, **options)


def test_what_does_not_fit_is_refused(device) -> None:
    tree = made(TREES["two branches"], 4, 2, 64, 1, torch.float32, device)
    groups = on(device, planned(tree))
    with pytest.raises(ValueError, match="pad them"):
        attention_shared_prefix(torch.cat([tree.q, tree.q]), tree.kv, tree.rows, groups)
    with pytest.raises(ValueError, match="int32"):
        attention_shared_prefix(tree.q, tree.kv, tree.rows, groups._replace(item_end=groups.item_end.long()))
    parts = attention_shared_prefix(tree.q, tree.kv, tree.rows, groups, tile=TILE)
    with pytest.raises(ValueError, match="window"):
        attention_decode(tree.q, tree.kv, tree.rows, max_keys=60, window=8, shared=groups, parts=parts)
    with pytest.raises(ValueError, match="go together"):
        attention_decode(tree.q, tree.kv, tree.rows, max_keys=60, shared=groups)


def test_sharing_pays_when_the_bytes_saved_outweigh_its_cost() -> None:
    llama_7b = {"heads_per_kv": 1, "kv_heads": 32, "processors": 132}
    assert pays(64, 4096, **llama_7b)
    assert pays(2, 8192, **llama_7b)
    assert not pays(1, 8192, **llama_7b)
    assert not pays(2, 64, **llama_7b)
    grouped = {"heads_per_kv": 8, "kv_heads": 1, "processors": 132}
    assert not pays(2, 8192, **grouped)  # one kv head: there is little to save
    assert not pays(64, 64, **grouped)
    assert not pays(512, 4096, **llama_7b, n_rows=1)  # queries of one row read the prefix once anyway
    for tokens in (64, 512, 4096):  # more members never make it worse
        verdicts = [pays(n, tokens, **llama_7b) for n in (1, 2, 4, 8, 64, 256)]
        assert verdicts == sorted(verdicts)


def test_cases_name_their_tiles() -> None:
    labels = [case.label for case in cases()]
    assert len(set(labels)) == len(labels)
    for case in cases():
        for capability in (80, 86, 90, 100):
            assert case.tiles.default(capability, case.shape) in case.tiles.candidates(capability, case.shape)
