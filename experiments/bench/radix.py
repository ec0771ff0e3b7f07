"""Benchmark of the radix tree: `python -m experiments.bench.radix [--data FOLDER] [--out FILE]`.

How fast it matches, inserts and evicts, how that grows with the tree, and how many prompt tokens of real MMLU it finds
in an unbounded pool and in a quarter of one, under each eviction policy.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.cache.page_pool import PagePool
from engine.cache.radix_tree import RadixTree
from engine.policies.eviction.lru import LRU
from engine.policies.registry import available, make_policy
from engine.request import Tokens
from experiments.bench.radix_prompts import (
    data_folder,
    distinct_prefixes,
    mmlu_prompts,
    reusable_tokens,
    synthetic_prompts,
)
from experiments.bench.radix_speed import (
    ORDERS,
    Speed,
    best_of,
    cycle_speed,
    evict_speed,
    filled,
    match_speed,
    pair_speed,
    request_for,
)

TARGET_PAIRS_PER_S = 100_000


class Reuse(NamedTuple):
    """Cached prompt tokens when the prompts come one at a time."""

    order: str
    policy: str
    pool_tokens: int
    prompt_tokens: int
    cached_tokens: int
    evicted_tokens: int
    refetched_tokens: int


def serve_all(prompts: Sequence[Tokens], policy: str, pool_tokens: int, order: str) -> Reuse:
    """The cache alone, page size 1: each prompt is matched, computed where it isn't found, kept, let go."""
    pool = PagePool(pool_tokens)
    tree = RadixTree(
        page_size=1,
        capacity_tokens=pool_tokens,
        eviction=make_policy("eviction", policy),
        rng=random.Random(0),
        cost=lambda _, n: float(n),
    )
    found = 0
    for i, prompt in enumerate(prompts):
        request = request_for(prompt, i)
        match = tree.match(prompt, "", len(prompt) - 1)
        cached = match.pages()
        tree.miss(request, prompt, match)
        lock = tree.acquire(match, request, first=True)
        need = len(prompt) - len(cached)
        for gone in tree.evict(need - pool.n_free, request):
            pool.free(gone.pages)
        own = pool.alloc(need)
        if own is None:
            raise ValueError(f"a pool of {pool_tokens} tokens can't hold a prompt of {len(prompt)}")
        inserted = tree.insert(prompt, np.concatenate([cached, own]), lock, request)
        pool.free(own[: inserted.n_duplicate])
        tree.unlock(inserted.lock)
        found += match.n_tokens
    total = sum(map(len, prompts))
    return Reuse(order, policy, pool_tokens, total, found, tree.evicted_tokens, tree.refetched_tokens)


def reuse_on_mmlu(prompts: Sequence[Tokens]) -> list[Reuse]:
    """Unbounded (held against brute force) and a quarter of that, subject after subject and all mixed."""
    mixed = list(prompts)
    random.Random(0).shuffle(mixed)
    whole = distinct_prefixes(prompts)
    rows = [
        Reuse("subject by subject", "brute force", whole, sum(map(len, prompts)), reusable_tokens(prompts), 0, 0),
        serve_all(prompts, "lru", whole, "subject by subject"),
        Reuse("mixed", "brute force", whole, sum(map(len, mixed)), reusable_tokens(mixed), 0, 0),
        serve_all(mixed, "lru", whole, "mixed"),
    ]
    for order, ordered in (("subject by subject", prompts), ("mixed", mixed)):
        rows += [serve_all(ordered, policy, whole // 4, order) for policy in available("eviction")]
    return rows


def speeds(mmlu: Sequence[Tokens] | None, n: int, repeats: int) -> list[Speed]:
    prompts = synthetic_prompts(n)
    rows = [best_of(repeats, partial(measure, prompts, [])) for measure in (pair_speed, cycle_speed)]
    fresh = synthetic_prompts(5_000)
    for prompt in fresh:
        prompt[500:] = np.flip(prompt[500:])
    for size in (size for size in (1_000, 10_000, 100_000) if size <= n):
        before = prompts[:size]
        rows.append(best_of(repeats, partial(match_speed, filled(before, LRU()), before[:20_000], size)))
        rows.append(best_of(repeats, partial(pair_speed, fresh, before)))
        rows.append(best_of(repeats, partial(cycle_speed, fresh, before)))
        for order in ORDERS:
            calls = max(2, 20_000 // size) if order == "rekey" else min(size // 2, 5_000)
            rows.append(best_of(repeats, partial(evict_speed, order, before, calls)))
    if mmlu:
        full = filled(mmlu, LRU())
        match = partial(match_speed, full, mmlu, len(mmlu))
        for measure in (match, partial(pair_speed, mmlu, []), partial(cycle_speed, mmlu, [])):
            one = best_of(20 * repeats, measure)
            rows.append(one._replace(operation=f"{one.operation}, MMLU"))
    return rows


def table_of(speed: Sequence[Speed], reuse: Sequence[Reuse]) -> Table:
    table = Table(title="radix tree, page size 1")
    for name in ("what", "leaves before, or pool", "a second, or cached", "tokens a second, or share"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in speed:
        table.add_row(row.operation, f"{row.leaves:,}", f"{row.per_s:,.0f}", f"{row.tokens_per_s:,.0f}")
    table.add_section()
    for used in reuse:
        share = used.cached_tokens / used.prompt_tokens
        cached = f"{used.cached_tokens:,} of {used.prompt_tokens:,}"
        table.add_row(f"MMLU {used.order}, {used.policy}", f"{used.pool_tokens:,}", cached, f"{share:.1%}")
    return table


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".partial-", delete=False) as file:
        try:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table, writes the JSON. Exit code 1 when the tree finds other tokens than brute force does."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench.radix")
    parser.add_argument("--data", help="folder with mmlu/ and tokenizers/ (default: $RADIXLAB_DATA)")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/radix.json"))
    parser.add_argument("--prompts", type=int, default=100_000, help="synthetic prompts (default 100,000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each measurement; the fastest counts")
    options = parser.parse_args(arguments)
    console = Console(width=120)
    data = data_folder(options.data)
    if data is None:
        console.print("without real MMLU: give --data FOLDER, or set RADIXLAB_DATA, to measure on it as well")
    mmlu = mmlu_prompts(data) if data else None
    reuse = reuse_on_mmlu(mmlu) if mmlu else []
    speed = speeds(mmlu, options.prompts, options.repeats)
    console.print(table_of(speed, reuse))
    pairs = speed[0].per_s
    console.print(f"match + insert pairs a second: {pairs:,.0f}, target {TARGET_PAIRS_PER_S:,}")
    found = {(row.order, row.policy, row.pool_tokens): row.cached_tokens for row in reuse}
    wrong = [key for key, n in found.items() if key[1] == "brute force" and found[key[0], "lru", key[2]] != n]
    content = {
        "speed": [row._asdict() for row in speed],
        "reuse": [row._asdict() for row in reuse],
        "target_pairs_per_s": TARGET_PAIRS_PER_S,
        "environment": {"python": platform.python_version(), "cpu": platform.processor() or platform.machine()},
    }
    write_json(options.out, content)
    console.print(f"written to {options.out}")
    for key in wrong:
        console.print(f"the tree found other tokens than brute force: {key}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
