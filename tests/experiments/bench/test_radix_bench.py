"""The radix benchmark runs, and its counts are those of brute force."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.radix import main, reuse_on_mmlu
from experiments.bench.radix_prompts import distinct_prefixes, mmlu_prompts, reusable_tokens


def test_brute_force_on_a_case_counted_by_hand() -> None:
    prompts = [np.array(tokens, np.int64) for tokens in ([1, 2, 3], [1, 2, 4], [1, 2, 3], [9])]
    assert reusable_tokens(prompts) == 0 + 2 + 2 + 0
    assert distinct_prefixes(prompts) == 3 + 1 + 0 + 1


def test_it_runs_without_data_and_writes_whole_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RADIXLAB_DATA", raising=False)
    out = tmp_path / "results" / "radix.json"
    assert main(["--prompts", "1000", "--repeats", "1", "--out", str(out)]) == 0
    content = json.loads(out.read_text())
    assert {row["operation"] for row in content["speed"]} >= {"match", "match + insert", "evict 100 tokens, lazy"}
    assert all(row["per_s"] > 0 for row in content["speed"])
    assert [path.name for path in out.parent.iterdir()] == ["radix.json"]


@pytest.mark.skipif("RADIXLAB_DATA" not in os.environ, reason="needs real MMLU: set RADIXLAB_DATA")
def test_the_tree_finds_what_a_perfect_cache_would_on_real_mmlu() -> None:
    prompts = mmlu_prompts(Path(os.environ["RADIXLAB_DATA"]))
    rows = reuse_on_mmlu(prompts)
    unbounded = [row for row in rows if row.pool_tokens == 10_064]
    assert [row.cached_tokens for row in unbounded] == [48_400] * 4
    assert {row.prompt_tokens for row in rows} == {58_464}
    quarter = [row for row in rows if row.pool_tokens == 2_516]
    assert len(quarter) == 10
    assert all(0 < row.cached_tokens < 48_400 for row in quarter)
    assert all(row.evicted_tokens >= row.refetched_tokens for row in quarter)
