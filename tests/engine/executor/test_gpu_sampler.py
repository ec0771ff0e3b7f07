"""Sampling on the device against `engine.sampler`: the same tokens, log-probabilities and error texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine import sampler
from engine.executor import gpu_sampler
from engine.executor.gpu_sampler import GpuSampler
from engine.kernels import sample as family
from engine.kernels.tiles import Gpu, Tile, target
from engine.request import Request, SamplingParams, TokenLogprob

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
VOCAB = 100


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter runs programs one after another."""
    if DEVICE.type == "cuda":
        yield
        return
    monkeypatch.setattr(family, "choose", lambda *_: Tile({"BLOCK": 64}, 4, 1))
    with target(Gpu("", 90, 2)):
        yield


def request(prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 0, **params: Any) -> Request:
    prompt, output = prompt or [1, 2, 3], output or []
    tokens = np.zeros(len(prompt) + 600, np.int64)
    tokens[: len(prompt) + len(output)] = prompt + output
    return Request(
        id=0,
        key=np.array(prompt, np.int64),
        params=SamplingParams(**{"max_tokens": 600, "temperature": 0.0, **params}),
        tokens=tokens,
        n_tokens=len(prompt) + len(output),
        seed=seed,
        eos=(2,),
    )


def logits_of(seed: int, rows: int = 1, vocab: int = VOCAB, scale: float = 2.0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def packed(allowed: list[int], vocab: int = VOCAB) -> np.ndarray:
    words = np.zeros((vocab + 31) // 32, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words.view(np.int32)


def same(found: Sequence[TokenLogprob | None], wanted: Sequence[TokenLogprob | None]) -> None:
    """Log-probabilities within the rounding of a float32 log-softmax."""
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.token == b.token
            assert a.logprob == pytest.approx(b.logprob, abs=2e-6)
            assert [t for t, _ in a.top] == [t for t, _ in b.top]
            assert [v for _, v in a.top] == pytest.approx([v for _, v in b.top], abs=2e-6)


def check(logits: Tensor, requests: list[Request], masks: Sequence[Any] | None = None) -> sampler.Sampled:
    """Both samplers say the same."""
    wanted = sampler.sample(logits, requests, masks)
    out = torch.full((len(requests),), -1, dtype=torch.int64, device=DEVICE)
    found = GpuSampler(logits.shape[1], DEVICE).launch(logits.to(DEVICE), requests, masks, out=out).wait()
    assert found.tokens == wanted.tokens
    assert found.errors == wanted.errors
    same(found.logprobs, wanted.logprobs)
    assert out.tolist() == [token or 0 for token in wanted.tokens], "what the next step reads on the device"
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_rows_are_the_cpus_and_upload_nothing(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sampler.Upload, "__call__", lambda *_: pytest.fail("an upload"))
    logits = (logits_of(0, 5) * 2).round().to(dtype)
    check(logits, [request() for _ in range(5)])


def test_a_mixed_batch_is_the_cpus_in_every_row() -> None:
    requests = [
        request(),
        request(output=[5, 5, 9], repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.7),
        request([4, -3, -9, 99], [7], repetition_penalty=100.0),
        request(output=[5], min_tokens=3, stop_token_ids=(17, 4000)),
        request(output=[5, 6, 7], min_tokens=3),
        request(min_tokens=3, ignore_eos=True),
        request(seed=5, temperature=1.0),
        request(seed=6, temperature=0.7, top_k=9, output=[1, 2]),
        request(seed=7, temperature=1.3, top_p=0.8, presence_penalty=-1.0, output=[3] * 4),
        request(seed=2**63 - 1, temperature=1.0, min_p=0.2, logprobs=0),
        request(output=[9], temperature=1.0, forced_output=(9, 55), logprobs=3),
        request(logprobs=200),
        request(temperature=1e-300, top_k=10**12),
    ]
    logits = logits_of(1, len(requests))
    logits[:, 2] = 9.0  # the end of the sequence
    rng = np.random.default_rng(0)
    masks: list[Any] = [packed(rng.choice(VOCAB, 30, replace=False).tolist()) for _ in requests]
    masks[1] = masks[6] = masks[11] = None
    masks[7] = torch.from_numpy(masks[7])
    check(logits, requests)
    check(logits, requests, masks)


@pytest.mark.parametrize("vocab", [31, 64, 129])
def test_drawn_tokens_are_the_cpus(vocab: int) -> None:
    """Not only in law: the order, the cuts and the random numbers are the same."""
    cuts: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_p": 0.5}, {"top_k": 20, "top_p": 0.9, "min_p": 0.05}]
    requests = [request(seed=i, output=[1] * i, **{"temperature": 0.9, **cut}) for i, cut in enumerate(cuts * 2)]
    check(logits_of(vocab, 8, vocab), requests)


def test_rows_fail_alone_with_the_cpus_words() -> None:
    logits = logits_of(3, 9)
    logits[1, 77] = math.nan
    logits[2, 5] = math.inf
    logits[3] = -math.inf
    logits[6, 9] = math.nan
    requests = [request(logprobs=1) for _ in range(9)]
    requests[4] = request(min_tokens=4, temperature=1.0, logprobs=2)
    requests[5] = request(output=[1], forced_output=(1,), logprobs=0)
    requests[6] = request(forced_output=(4,))
    requests[7] = request(forced_output=(VOCAB,))
    found = check(logits, requests, [None] * 4 + [packed([2])] + [None] * 4)
    assert [error is None for error in found.errors] == [True, *[False] * 7, True]


def test_what_the_engine_appends_meanwhile_makes_no_difference() -> None:
    logits = logits_of(4, 3)
    requests = [request(logprobs=2), request(forced_output=(8,)), request(temperature=1.0, frequency_penalty=0.1)]
    wanted = sampler.sample(logits, requests)
    pending = GpuSampler(VOCAB, DEVICE).launch(logits.to(DEVICE), requests)
    for one in requests:
        one.append(3)
    found = pending.wait()
    assert (found.tokens, found.errors) == (wanted.tokens, wanted.errors)
    same(found.logprobs, wanted.logprobs)


def test_several_steps_under_way_and_a_growing_output_with_penalties() -> None:
    there = GpuSampler(20, DEVICE)
    ours = [request([1, 2], seed=i, temperature=float(i > 0), frequency_penalty=0.9) for i in range(3)]
    theirs = [request([1, 2], seed=i, temperature=float(i > 0), frequency_penalty=0.9) for i in range(3)]
    for step in range(6):
        logits = logits_of(step, 3, 20)
        found = there.launch(logits.to(DEVICE), ours).wait()
        wanted = sampler.sample(logits, theirs)
        assert found.tokens == wanted.tokens
        for a, b, token in zip(ours, theirs, wanted.tokens):
            assert token is not None
            a.append(token)
            b.append(token)


def test_rows_may_lie_anywhere_in_the_logits() -> None:
    logits = logits_of(5, 7)
    at = torch.tensor([6, 2, 4])
    requests = [request(logprobs=2), request(temperature=1.0, top_p=0.9), request([5], repetition_penalty=2.0)]
    for n in (3, 1):
        pending = GpuSampler(VOCAB, DEVICE).launch(logits.to(DEVICE), requests[:n], rows_of=at[:n].to(DEVICE))
        wanted = sampler.sample(logits[at[:n]], requests[:n])
        assert pending.wait().tokens == wanted.tokens
        same(pending.wait().logprobs, wanted.logprobs)


def test_log_probabilities_of_some_rows_and_ties_by_lower_id(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = logits_of(6, 5).round()
    logits[0, 5:] = -math.inf
    logits[3] = 0.0
    logits[4, ::2] = -0.0
    monkeypatch.setattr(gpu_sampler, "SCORE_BYTES", 8 * VOCAB * 2)
    check(logits, [request(logprobs=k) for k in (7, 0, None, 5, 12)])
    check(logits, [request(logprobs=k) for k in (9, 0, 0, 5, 12)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [0, 4, 300])
def test_prompt_scores_are_the_cpus(k: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sampler, "SCORE_BYTES", 8 * VOCAB * 10)
    logits = logits_of(7, 23).to(dtype)
    logits[2, 50:] = -math.inf
    targets = [i * 4 for i in range(23)]
    there = GpuSampler(VOCAB, DEVICE)
    same(there.score(logits.to(DEVICE), targets, k).wait(), sampler.score(logits, targets, k))
    assert there.score(logits[:0].to(DEVICE), [], k).wait() == ()


def test_what_cannot_be_scored_is_said_when_it_is_waited_for() -> None:
    there = GpuSampler(8, DEVICE)
    broken = torch.zeros(2, 8, device=DEVICE)
    broken[1, 3] = math.nan
    with pytest.raises(ValueError, match="row 1 can't be scored"):
        there.score(broken, [0, 0], 2).wait()
    outside = there.score(broken[:1], [8], 0)
    with pytest.raises(ValueError, match="ids go from 0 to 7"):
        outside.wait()
    with pytest.raises(ValueError, match="one each is needed"):
        there.score(broken, [1], 0)


def test_wrong_shapes_are_refused() -> None:
    there = GpuSampler(5, DEVICE)
    with pytest.raises(ValueError, match=r"\[requests, 5\]"):
        there.launch(torch.zeros(2, 5, device=DEVICE), [request()])
    with pytest.raises(ValueError, match=r"\[requests, 5\]"):
        there.launch(torch.zeros(1, 6, device=DEVICE), [request()])
    with pytest.raises(ValueError, match="2 masks"):
        there.launch(torch.zeros(1, 5, device=DEVICE), [request()], [None, None])
    with pytest.raises(ValueError, match=r"needs int32 \[1\]"):
        there.launch(torch.zeros(1, 5, device=DEVICE), [request()], [np.zeros(2, np.int32)])
    assert there.launch(torch.zeros(0, 5, device=DEVICE), []).wait() == ((), (), ())
