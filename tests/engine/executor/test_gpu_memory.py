"""How much of a GPU the pool takes, and how a step is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import ConfigError, EngineConfig
from engine.executor import gpu_setup
from engine.executor.base import PrefixGroup, Row
from engine.executor.gpu_graphs import ladder
from engine.executor.gpu_memory import GIB, Budget, Piece, check_weights, pool_pages
from engine.executor.gpu_pool import bytes_per_token, kv_dtype_named
from engine.executor.gpu_setup import busiest_step, set_up
from engine.models.shapes import SHAPES
from engine.request import Request, SamplingParams
from tests.engine.gpu_twins import DEVICE, SMALL, cuda_executor, gpu_model

LLAMA = SHAPES["llama-7b"]
BUDGET = Budget(total=80 * GIB, used=14 * GIB, step=1 * GIB, graphs=GIB // 2)


def pages(budget: Budget = BUDGET, **changes: Any) -> int:
    given = {"bytes_each": 2**19, "page_size": 16, "memory_fraction": 0.9, "name": "NVIDIA Test", **changes}
    return pool_pages(budget, LLAMA, **given)


def test_bytes_of_a_token_count_the_scales_of_a_quantised_pool() -> None:
    assert bytes_per_token(LLAMA, torch.bfloat16) == 2 * 32 * 32 * 128 * 2 == 2**19
    assert bytes_per_token(LLAMA, torch.int8) == 2 * 32 * 32 * (128 + 4)
    assert bytes_per_token(LLAMA, kv_dtype_named("fp8_e4m3", torch.bfloat16)) == 2 * 32 * 32 * (128 + 4)
    pool = cuda_executor(gpu_model(), n_pages=2, page_size=4, kv_dtype="int8").pool
    assert pool.k_scale is not None
    assert pool.v_scale is not None
    held = sum(x.nbytes for x in (pool.k, pool.v, pool.k_scale, pool.v_scale))
    assert held == 8 * bytes_per_token(SMALL, torch.int8)


def test_the_pool_takes_what_weights_step_and_graphs_leave() -> None:
    assert pages() == int((0.9 * 80 - 14 - 1 - 0.5) * GIB) // (2**19 * 16)
    assert pages(page_size=1) == pytest.approx(16 * pages(), abs=16)
    assert pages(memory_fraction=0.5) < pages() < pages(bytes_each=2**18)
    assert pages(wanted=17) == 17


def test_too_little_memory_says_what_is_needed_and_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"needs 17.5 GiB: 14.0 .*1.0 for a step.*2.0 for one context of 4096 tokens"):
        pages(BUDGET._replace(total=19 * GIB))
    with pytest.raises(ConfigError, match=r"needs 115.5 GiB.*100.0 for a pool of 204800.*smaller engine.pool_tokens"):
        pages(wanted=204800 // 16)
    with pytest.raises(ConfigError, match=r"llama-7b need 12.6 GiB, NVIDIA Test has 8.0 GiB free: use a 16-bit"):
        check_weights(int(12.6 * GIB), 8 * GIB, "NVIDIA Test", "llama-7b")
    check_weights(GIB, GIB, "", "")


def test_the_ladder_ends_at_the_most_and_gets_coarser() -> None:
    assert ladder(1) == [1]
    assert ladder(3) == [1, 2, 3]
    assert ladder(30) == [1, 2, 4, 8, 16, 24, 30]
    assert ladder(256) == [1, 2, 4, *range(8, 64, 8), *range(64, 128, 16), *range(128, 257, 32)]
    for most in range(1, 300):
        sizes = ladder(most)
        assert sizes == sorted(set(sizes))
        assert sizes[-1] == most


def test_the_busiest_step_fills_every_row_and_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = cuda_executor(gpu_model(replace(SMALL, n_layers=1)), n_pages=1, page_size=4, max_running=5)
    seen = []
    run = executor.runner.run
    monkeypatch.setattr(executor.runner, "run", lambda step, *rest: seen.append(step) or run(step, *rest))
    for n_tokens in (150, 5, 3):
        busiest_step(executor, n_tokens, 5)
    assert [len(step.arrays["tokens"]) for step in seen] == [150, 5, 3]
    assert [len(step.arrays["stage.single.table"]) for step in seen] == [3, 5, 3]
    assert max(step.arrays["stage.single.n_keys"].max() for step in seen) == SMALL.max_context


def test_a_loaded_model_is_set_up_with_the_pool_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpu_model(replace(SMALL, n_layers=1))
    config = EngineConfig(pool_tokens=40, page_size=4, max_running=3, kv_dtype="int8", cuda_graphs=False)
    monkeypatch.setattr(gpu_setup, "_pages", lambda *_: 10)
    executor = set_up(model, config, DEVICE)
    assert (executor.n_pages, executor.page_size, executor.pool.k.dtype) == (10, 4, torch.int8)
    if DEVICE.type == "cpu":
        with pytest.raises(ConfigError, match="pool_tokens"):
            set_up(model, replace(config, pool_tokens=None), DEVICE)


def piece(sizes: list[int]) -> Piece:
    request = Request(id=0, key=np.zeros(1000, np.int64), params=SamplingParams())
    return Piece(tuple(Row(request, 10 * i, n, i % 2 == 0) for i, n in enumerate(sizes)), tuple(range(len(sizes))))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=9), st.integers(1, 20))
def test_pieces_hold_every_token_once_and_in_order(sizes: list[int], most: int) -> None:
    rest: Piece | None = piece(sizes)
    found: list[tuple[int, int, bool]] = []
    while rest is not None:
        first, rest = rest.cut(most)
        assert 1 <= first.n_tokens <= most
        assert rest is None or first.n_tokens == most
        assert len(set(first.of)) == len(first.rows)
        for row, i in zip(first.rows, first.of, strict=True):
            last = range(row.n_new)[-1]
            found += [(i, row.start + k, row.sample and k == last) for k in range(row.n_new)]
    assert found == [(i, 10 * i + k, i % 2 == 0 and k == n - 1) for i, n in enumerate(sizes) for k in range(n)]


def test_a_piece_keeps_the_groups_that_have_two_rows_left() -> None:
    groups = [PrefixGroup((0, 2), 8), PrefixGroup((1, 3), 9)]
    first, rest = piece([4, 4, 4, 4]).cut(10)
    assert first.groups(groups) == [PrefixGroup((0, 2), 8)]
    assert rest is not None
    assert rest.of == (2, 3)
    assert rest.groups(groups) == []
    assert piece([1, 1, 1, 1]).groups(groups) == groups


def test_what_the_busiest_steps_take_is_left_beside_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measuring itself, over a GPU whose counters are made up: 3 MiB a step, 100 MiB of 256 in use."""
    model = gpu_model(replace(SMALL, n_layers=1))
    steps: list[tuple[int, SamplingParams]] = []
    counters = iter([0, 3 << 20, 0, 1 << 20])
    monkeypatch.setattr(gpu_setup, "busiest_step", lambda _, n, __, params: steps.append((n, params)))
    for name, answer in (
        ("mem_get_info", lambda *_: (156 << 20, 256 << 20)),
        ("memory_reserved", lambda *_: next(counters)),
        ("max_memory_reserved", lambda *_: next(counters)),
        ("get_device_name", lambda *_: "NVIDIA Test"),
        *((name, lambda *_: None) for name in ("empty_cache", "reset_peak_memory_stats", "synchronize")),
    ):
        monkeypatch.setattr(torch.cuda, name, answer)
    config = EngineConfig(max_batch_tokens=40, max_running=3, page_size=4, memory_fraction=0.75)
    found = gpu_setup._pages(model, config, DEVICE, None)
    assert steps == [(n, params) for n in (40, 3) for params in (gpu_setup.WORST, gpu_setup.GREEDY)]
    graphs = (1 << 20) + 2 * 3 * gpu_setup.GRAPH_BYTES
    left = (192 << 20) - (100 << 20) - (3 << 20) - graphs
    assert found == left // (4 * bytes_per_token(model.config, torch.float32)) > 0
