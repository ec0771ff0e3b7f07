"""Log-probabilities against brute force in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.logprobs import likeliest
from engine.request import Request, SamplingParams
from engine.sampler import sample, score


def brute(row: np.ndarray, k: int) -> list[tuple[int, float]]:
    row = row.astype(np.float64)
    logprobs = row - row.max() - math.log(np.exp(row - row.max()).sum())
    return sorted(((t, v) for t, v in enumerate(logprobs)), key=lambda pair: (-pair[1], pair[0]))[:k]


@pytest.mark.parametrize(("dtype", "accuracy"), [(torch.float32, 2e-6), (torch.float64, 1e-13), (torch.bfloat16, 2e-6)])
def test_score_is_brute_force(dtype: torch.dtype, accuracy: float) -> None:
    logits = (torch.randn(600, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3).to(dtype)
    targets = [i % 50 for i in range(600)]
    scored = score(logits, targets, 5)
    assert len(scored) == 600
    for row, target, found in zip(logits.double().numpy(), targets, scored):
        wanted = brute(row, 5)
        assert found.token == target
        assert found.logprob == pytest.approx(dict(brute(row, 50))[target], abs=accuracy)
        assert [t for t, _ in found.top] == [t for t, _ in wanted]
        assert [v for _, v in found.top] == pytest.approx([v for _, v in wanted], abs=accuracy)


def test_score_leaves_out_impossible_tokens_and_needs_no_top() -> None:
    logits = torch.full((1, 8), -math.inf)
    logits[0, [6, 3]] = 0.0
    (found,) = score(logits, [1], 5)
    assert found.logprob == -math.inf
    assert found.top == ((3, pytest.approx(-math.log(2))), (6, pytest.approx(-math.log(2))))
    assert score(logits, [3], 0)[0].top == ()
    assert score(torch.zeros(0, 8), [], 3) == ()


def test_what_cannot_be_scored_is_refused() -> None:
    broken = torch.zeros(2, 8)
    broken[1, 3] = math.nan
    with pytest.raises(ValueError, match="row 1 can't be scored"):
        score(broken, [0, 0], 0)
    with pytest.raises(ValueError, match="ids go from 0 to 7"):
        score(torch.zeros(1, 8), [8], 0)
    with pytest.raises(ValueError, match="one each is needed"):
        score(torch.zeros(1, 8), [1, 2], 0)


def test_sampled_tokens_are_scored_under_the_models_own_distribution() -> None:
    logits = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    wishes = [None, 0, 3, 100]
    requests = [
        Request(
            id=i,
            key=np.array([1, 2]),
            params=SamplingParams(
                max_tokens=8, temperature=3.0, top_k=5, repetition_penalty=1.9, presence_penalty=1.0, logprobs=k
            ),
            tokens=np.array([1, 2, 3, 3, 0]),
            n_tokens=4,
            seed=i,
        )
        for i, k in enumerate(wishes)
    ]
    mask = np.array([0b1111 << 4, 0], np.int32)
    out = sample(logits, requests, [mask] * 4)
    assert out.logprobs[0] is None
    for row, token, found, k in list(zip(logits.numpy(), out.tokens, out.logprobs, wishes))[1:]:
        assert token in range(4, 8)
        assert found is not None
        assert found.token == token
        assert found.logprob == pytest.approx(dict(brute(row, 64))[token], abs=1e-5)
        assert [t for t, _ in found.top] == [t for t, _ in brute(row, min(k or 0, 64))]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_likeliest_orders_by_value_then_by_id_however_many_are_equal(data: st.DataObject) -> None:
    vocab = data.draw(st.sampled_from([1, 9, 100, 400]))
    k = data.draw(st.integers(1, vocab))
    levels = data.draw(st.sampled_from([1, 2, 5, 1000]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = rng.integers(0, levels, (3, vocab)).astype(np.float32)
    values, ids = likeliest(torch.from_numpy(rows), k)
    for row, found, places in zip(rows, values.numpy(), ids.numpy()):
        wanted = sorted(range(vocab), key=lambda t: (-row[t], t))[:k]
        assert places.tolist() == wanted
        assert found.tolist() == row[wanted].tolist()
