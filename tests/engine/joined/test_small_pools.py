"""Joined prompts that crowd a pool: they are preempted, let go of branches, borrow, and answer as in a large one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from engine.engine import Engine
from engine.splices import JoinedPrompt
from tests.engine.joined.test_traffic import Traffic, write
from tests.engine.joined_hash import Written, assert_the_cache_is_true, make


def crowd(engine: Engine, seed: int) -> list[tuple[list[int], str]]:
    """Many joined prompts and others at once. Returns their answers, which are those of prompts served alone."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> list[int]:
        return rng.integers(0, 3, rng.integers(0, most + 1)).tolist()

    traffic = Traffic(engine)
    for _ in range(14):
        inner = [text(4), ("join", [text(5), text(5)]), text(2)]
        whole = [[1, *text(6)], ("join", [text(8), inner, text(8)]), [0], ("join", [text(4), text(6)]), [2, *text(3)]]
        traffic.add(write(JoinedPrompt(), whole), write(Written(), whole), int(rng.integers(1, 24)))
        joined = write(JoinedPrompt(), whole)
        for ordinary in ([1, *text(20)], joined.tokens[: int(rng.integers(1, len(joined.tokens) + 1))]):
            traffic.add(JoinedPrompt(ordinary), traffic.written(ordinary), int(rng.integers(1, 24)))
        if rng.random() < 0.3:
            traffic.step()
    traffic.run([])
    assert_the_cache_is_true(engine)
    assert [list(request.output) for request in traffic.requests] == list(traffic.expected.values())
    return [(list(request.output), str(request.finish_reason)) for request in traffic.requests]


def noting(method: Callable[..., bool]) -> tuple[Callable[..., bool], list[bool]]:
    """The method, and what it gives from now on."""
    answers: list[bool] = []

    def noted(*args: Any) -> bool:
        answers.append(method(*args))
        return answers[-1]

    return noted, answers


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("page_size", "small"), [(1, 76), (4, 96)])
@pytest.mark.parametrize("cache", ["radix", "flat", "none"])
def test_a_small_pool_gives_the_answers_of_a_large_one(page_size: int, small: int, cache: str, overlap: bool) -> None:
    preemptions = gave_way = borrowed = 0
    for seed in range(6):
        settings = {"page_size": page_size, "cache": cache, "overlap": overlap, "max_batch_tokens": 24}
        tight = make(pool_tokens=small, **settings)
        tight.scheduler._wants = lambda request: request.n_tokens  # type: ignore  # admits more than fits
        assembler: Any = tight.scheduler.assembler
        memory: Any = tight.memory
        assembler._drop, dropped = noting(assembler._drop)
        memory.borrow, lent = noting(memory.borrow)
        assert crowd(tight, seed) == crowd(make(pool_tokens=2000, **settings), seed)
        preemptions += tight.scheduler.preemptions
        gave_way += sum(dropped)
        borrowed += sum(lent)
    assert preemptions > 0
    assert gave_way > 0
    assert borrowed > 0
