"""Engines with each grammar library: what comes out matches, with and without jump-forward."""

from __future__ import annotations

import re
from functools import cache

import pytest

from engine import Engine, EngineConfig, FinishReason, SamplingParams, make_engine
from engine.constraints import choices, regex
from engine.constraints.backends import BACKENDS

PATTERNS = [
    r'\{"name": "[a-z]{1,8}", "age": \d{1,3}\}',
    r"(https?://)?example\.(com|org)/[a-z0-9]{2,6}",
    r"caf(é|è) \w{1,3}!",
    r"it is (very ){0,3}(hot|cold) today",
]


@cache
def engine(backend: str, jump_forward: bool) -> Engine:
    if backend == "xgrammar":
        pytest.importorskip("xgrammar")
    return make_engine(
        EngineConfig(
            device="cpu", pool_tokens=2048, grammar_backend=backend, jump_forward=jump_forward, dtype="float64"
        )
    )


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_match_and_jump_forward_changes_nothing(backend: str, pattern: str) -> None:
    params = SamplingParams(grammar=regex(pattern), max_tokens=120, seed=3, n=3)
    (jumping,) = engine(backend, True).generate(["It says: "], params)
    (one_by_one,) = engine(backend, False).generate(["It says: "], params)
    for request, slow in zip(jumping, one_by_one):
        assert request.finish_reason is FinishReason.STOP, request.error
        assert re.fullmatch(pattern, request.text)
        assert request.output == slow.output
    assert sum(request.constraint.passes_saved for request in jumping if request.constraint) > 0
    assert sum(request.constraint.passes_saved for request in one_by_one if request.constraint) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_choice_is_one_of_them(backend: str) -> None:
    options = ["red", "reddish", "blue", "blå"]
    params = SamplingParams(grammar=choices(options), max_tokens=20, seed=5, n=4)
    (requests,) = engine(backend, True).generate(["The colour is "], params)
    assert {request.text for request in requests} <= set(options)
