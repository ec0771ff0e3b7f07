"""Sampling against transformers' processors, exact probabilities and brute force in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine import hashed_random
from engine.request import Request, SamplingParams
from engine.sampler import sample

VOCAB = 100


def request(prompt: list[int] | None = None, output: list[int] | None = None, seed: int = 0, **params: Any) -> Request:
    prompt, output = prompt or [1, 2, 3], output or []
    key = np.array(prompt, np.int64)
    tokens = np.zeros(len(prompt) + 600, np.int64)
    tokens[: len(prompt) + len(output)] = prompt + output
    return Request(
        id=0,
        key=key,
        params=SamplingParams(**{"max_tokens": 600, **params}),
        tokens=tokens,
        n_tokens=len(prompt) + len(output),
        seed=seed,
        eos=(2,),
    )


def logits_of(seed: int, rows: int = 1, vocab: int = VOCAB, scale: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def draws(row: torch.Tensor, n: int, **params: Any) -> np.ndarray:
    """The tokens that n requests with seeds 0..n-1 sample from the same logits [vocab]."""
    got: list[int] = []
    for start in range(0, n, 1000):
        requests = [request(seed=start + i, **params) for i in range(min(1000, n - start))]
        out = sample(row.expand(len(requests), -1), requests)
        assert not any(out.errors)
        got += [token for token in out.tokens if token is not None]
    return np.bincount(got, minlength=len(row))


def packed(allowed: list[int], vocab: int = VOCAB) -> np.ndarray:
    words = np.zeros((vocab + 31) // 32, np.uint32)
    for token in allowed:
        words[token // 32] |= np.uint32(1 << (token % 32))
    return words.view(np.int32)


CUTS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10_000},
    {"top_p": 0.05},
    {"top_p": 0.5},
    {"top_p": 0.93, "temperature": 1.4},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 0.02, "temperature": 0.8},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 30, "top_p": 0.95, "min_p": 0.05, "temperature": 1.3},
]


def expected_probabilities(row: torch.Tensor, cut: dict[str, Any]) -> np.ndarray:
    """What transformers' `generate` would sample from."""
    steps = LogitsProcessorList()
    if "temperature" in cut:
        steps.append(TemperatureLogitsWarper(cut["temperature"]))
    if "top_k" in cut:
        steps.append(TopKLogitsWarper(cut["top_k"]))
    if "top_p" in cut:
        steps.append(TopPLogitsWarper(cut["top_p"]))
    if "min_p" in cut:
        steps.append(MinPLogitsWarper(cut["min_p"]))
    return torch.softmax(steps(torch.zeros(1, 1, dtype=torch.long), row[None].clone())[0], -1).numpy()


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_samples_follow_the_distribution_of_transformers(cut: dict[str, Any]) -> None:
    row = logits_of(1)[0]
    exact = expected_probabilities(row, cut)
    n = 20_000
    counts = draws(row, n, **cut)
    assert counts[exact == 0].sum() == 0, "a token was sampled that transformers cuts off"
    likely = exact * n >= 5
    observed = np.append(counts[likely], counts[~likely].sum())
    wanted = np.append(exact[likely], exact[~likely].sum()) * n
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    if len(wanted) == 1:
        assert observed[0] == n
        return
    assert stats.chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_token_that_transformers_keeps_can_be_sampled_and_no_other(
    cut: dict[str, Any], dtype: torch.dtype
) -> None:
    row = logits_of(2, vocab=12, scale=1.0)[0].to(dtype)
    sampled = set(np.flatnonzero(draws(row, 6000, **cut)))
    assert sampled == set(np.flatnonzero(expected_probabilities(row, cut)))


def test_top_p_looks_past_the_first_candidates_when_the_distribution_is_flat() -> None:
    row = logits_of(3, vocab=12_000, scale=0.1)[0].float()
    allowed = expected_probabilities(row, {"top_p": 0.9}) > 0
    assert allowed.sum() > 9000
    counts = draws(row, 2000, top_p=0.9)
    assert counts[~allowed].sum() == 0
    order = torch.argsort(row, descending=True).numpy()
    assert counts[order[1024:]].sum() > 1000, "most of the mass lies past the first 1024 candidates"


def test_top_k_of_equal_logits_takes_the_lowest_ids() -> None:
    row = torch.zeros(4000)
    row[3000] = 1.0
    counts = draws(row.bfloat16(), 3000, top_k=4)
    assert set(np.flatnonzero(counts)) == {0, 1, 2, 3000}


def test_greedy_takes_the_likeliest_token_and_the_lower_id_of_equals() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [7, 40]] = 3.0
    logits[1, 99] = 1.0
    for params in ({}, {"logprobs": 0}, {"repetition_penalty": 1.0000001}):
        assert sample(logits, [request(temperature=0, **params)] * 2).tokens == (7, 99)


def test_tiny_temperature_is_greedy_and_never_nan() -> None:
    logits = logits_of(4, rows=3).float() * 1000
    for temperature in (1e-3, 1e-12, 1e-300):
        out = sample(logits, [request(temperature=temperature, seed=i) for i in range(3)])
        assert list(out.tokens) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_repetition_penalty_is_transformers(penalty: float) -> None:
    logits = logits_of(5, rows=40)
    rng = np.random.default_rng(0)
    for row in logits:
        prompt, output = rng.integers(0, VOCAB, 30).tolist(), rng.integers(0, VOCAB, 10).tolist()
        processor = RepetitionPenaltyLogitsProcessor(penalty)
        wanted = processor(torch.tensor([prompt + output]), row[None].clone()).argmax().item()
        got = sample(row[None], [request(prompt, output, temperature=0, repetition_penalty=penalty)])
        assert got.tokens == (wanted,)


def test_penalties_are_the_formula_at_every_step_of_a_growing_output() -> None:
    """Brute force in float64, with counts made anew; the sampler keeps its own from step to step."""
    rng = np.random.default_rng(7)
    rows = [
        request(
            rng.integers(0, 20, 15).tolist(),
            temperature=0,
            repetition_penalty=r,
            presence_penalty=p,
            frequency_penalty=f,
        )
        for r, p, f in [(1.2, 0.5, 0.25), (1.0, -1.5, 0.0), (0.8, 0.0, 1.9), (1.0, 0.0, 0.0), (1.5, 2.0, -0.3)]
    ]
    for step in range(60):
        logits = logits_of(100 + step, rows=len(rows), vocab=20)
        wanted = []
        for row, logit in zip(rows, logits.numpy()):
            p = row.params
            for_all = row.tokens[: row.n_tokens].tolist()
            score = []
            for token, value in enumerate(logit):
                if token in for_all:
                    value = value / p.repetition_penalty if value > 0 else value * p.repetition_penalty
                count = for_all[row.prompt_tokens :].count(token)
                score.append(value - p.presence_penalty * (count > 0) - p.frequency_penalty * count)
            wanted.append(int(np.argmax(score)))
        got = sample(logits, rows).tokens
        assert list(got) == wanted
        for row, token in zip(rows, got):
            row.append(token)  # type: ignore[arg-type]


def test_penalties_are_right_after_steps_that_the_sampler_did_not_see() -> None:
    logits = torch.zeros(1, VOCAB, dtype=torch.float64)
    one = request([5], temperature=0, frequency_penalty=1.0)
    assert sample(logits, [one]).tokens == (0,)
    for token in (0, 1, 1, 0, 2):
        one.append(token)
    logits[0, :3] = torch.tensor([1.5, 1.9, 0.95])  # less 2, 2 and 1
    assert sample(logits, [one]).tokens == (3,)


def test_image_positions_in_the_prompt_are_not_penalised() -> None:
    logits = logits_of(9)
    logits[0, VOCAB - 3] = 50.0
    one = request([4, -3, -9], temperature=0, repetition_penalty=100.0)
    assert sample(logits, [one]).tokens == (VOCAB - 3,)


def test_min_tokens_is_transformers() -> None:
    for n_output in range(5):
        logits = logits_of(20 + n_output)
        logits[0, [2, 17]] = torch.tensor([90.0, 80.0], dtype=torch.float64)
        one = request([1, 3], [5] * n_output, temperature=0, min_tokens=3, stop_token_ids=(17,))
        processor = MinNewTokensLengthLogitsProcessor(2, 3, [2, 17])
        wanted = processor(torch.zeros(1, 2 + n_output, dtype=torch.long), logits.clone()).argmax().item()
        assert sample(logits, [one]).tokens == (wanted,)
        assert (wanted == 2) == (n_output >= 3)


def test_min_tokens_leaves_an_ignored_end_of_sequence_alone() -> None:
    logits = logits_of(1)
    logits[0, 2] = 90.0
    assert sample(logits, [request(temperature=0, min_tokens=3, ignore_eos=True)]).tokens == (2,)


@pytest.mark.parametrize("vocab", [32, 33, 64, 100])
def test_only_what_the_mask_allows_is_sampled(vocab: int) -> None:
    rng = np.random.default_rng(vocab)
    logits = logits_of(vocab, rows=50, vocab=vocab)
    allowed = [rng.choice(vocab, rng.integers(1, 6), replace=False).tolist() for _ in range(50)]
    masks: list[Any] = [packed(a, vocab) for a in allowed]
    masks[10] = torch.from_numpy(masks[10])
    masks[20] = None
    greedy = sample(logits, [request(temperature=0)] * 50, masks).tokens
    hot = sample(logits, [request(temperature=5.0, seed=i) for i in range(50)], masks).tokens
    for i in range(50):
        choices = allowed[i] if i != 20 else range(vocab)
        assert greedy[i] == max(choices, key=lambda t: logits[i, t].item())
        assert hot[i] in choices


@pytest.mark.parametrize("vocab", [4, 31, 32, 33, 100, 1000, 4099])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mask_is_the_same_as_logits_of_minus_infinity(vocab: int, dtype: torch.dtype) -> None:
    """Masks of every density, bits beyond the vocabulary and ties among them; some rows have none."""
    rng = np.random.default_rng(vocab)
    n, words = 40, (vocab + 31) // 32
    logits = logits_of(vocab, rows=n, vocab=vocab).mul(4).round().div(4).to(dtype)  # few values: many are equal
    logits[5, rng.random(vocab) < 0.5] = -math.inf
    share = rng.choice([0.0, 0.001, 0.02, 0.3, 1.0], n)
    bits = rng.random((n, 32 * words)) < share[:, None]
    bits[:, vocab:] = True
    masks: list[Any] = list(np.packbits(bits, axis=1, bitorder="little").view(np.int32))
    masks[3] = masks[7] = None
    requests = [
        request(
            seed=i,
            temperature=(0, 1.0, 0, 0.3, 0)[i % 5],
            top_k=(0, 4)[i % 7 == 1],
            top_p=(1.0, 0.7)[i % 4 == 1],
            repetition_penalty=(1.0, 1.3)[i % 6 == 2],
        )
        for i in range(n)
    ]
    out = sample(logits, requests, masks)
    forbidden = torch.from_numpy(~bits[:, :vocab])
    forbidden[[3, 7]] = False
    plain = logits.masked_fill(forbidden, -math.inf)
    wanted = sample(plain, requests)
    assert out.tokens == wanted.tokens
    for i, token in enumerate(out.tokens):
        if (plain[i] == -math.inf).all():
            assert token is None
            assert "forbidden" in (out.errors[i] or "") or (logits[i] == -math.inf).all()
        else:
            assert out.errors[i] is None
            if requests[i].params.temperature == 0 and requests[i].params.repetition_penalty == 1.0:
                assert token == plain[i].tolist().index(max(plain[i].tolist()))


def test_forced_tokens_come_out_with_the_models_log_probability() -> None:
    logits = logits_of(30)
    one = request(output=[9], temperature=1.0, forced_output=(9, 55), logprobs=2)
    out = sample(logits, [one], [packed([1])])
    assert out.tokens == (55,)
    assert out.logprobs[0] is not None
    assert out.logprobs[0].logprob == pytest.approx(torch.log_softmax(logits[0], -1)[55].item())
    one.append(55)
    over = sample(logits, [one])
    assert over.tokens == (None,)
    assert "forced_output has 2 tokens" in (over.errors[0] or "")
    assert "from 0 to 99" in (sample(logits, [request(forced_output=(100,))]).errors[0] or "")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_broken_logits_fails_alone(bad: float, temperature: float) -> None:
    logits = logits_of(40, rows=4).float()
    requests = [request(temperature=temperature, seed=i, logprobs=1) for i in range(4)]
    sound = sample(logits, requests)
    logits[1, 77] = bad
    logits[3] = -math.inf
    out = sample(logits, requests)
    assert out.tokens == (sound.tokens[0], None, sound.tokens[2], None)
    assert [e is None for e in out.errors] == [True, False, True, False]
    assert [p is None for p in out.logprobs] == [False, True, False, True]
    assert "broken" in (out.errors[1] or "")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_may_take_no_token_fails_alone(temperature: float) -> None:
    logits = logits_of(41, rows=2)
    requests = [request(temperature=temperature, min_tokens=5), request(temperature=temperature)]
    out = sample(logits, requests, [packed([2]), packed([2])])
    assert out.tokens == (None, 2)
    assert "forbidden" in (out.errors[0] or "")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_request_samples_the_same_whatever_the_batch_around_it(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(3)
    vocab = 9000
    requests = []
    for i in range(60):
        cut = CUTS[i % len(CUTS)]
        extra = {"presence_penalty": 0.5} if i % 4 == 0 else {}
        requests.append(request(output=[7] * int(rng.integers(0, 9)), seed=i, **cut, **extra))
    logits = logits_of(50, rows=60, vocab=vocab).to(dtype)
    together = sample(logits, requests).tokens
    order = rng.permutation(60).tolist()
    shuffled = sample(logits[order], [requests[i] for i in order]).tokens
    assert [together[i] for i in order] == list(shuffled)
    assert [sample(logits[i : i + 1], [requests[i]]).tokens[0] for i in range(60)] == list(together)


def test_the_random_number_depends_on_seed_and_position_only() -> None:
    logits = torch.zeros(1, 1 << 15)
    token = sample(logits, [request(output=[1, 2], seed=5)]).tokens
    assert token == sample(logits, [request([9] * 50, [3, 4], seed=5)]).tokens
    assert token != sample(logits, [request(output=[1], seed=5)]).tokens
    assert token != sample(logits, [request(output=[1, 2], seed=6)]).tokens


def test_logits_are_not_changed() -> None:
    logits = logits_of(60, rows=3)
    before = logits.clone()
    params = {"repetition_penalty": 2.0, "min_tokens": 4, "top_p": 0.5, "logprobs": 3}
    sample(logits, [request(seed=i, **params) for i in range(3)], [packed([1, 2, 3])] * 3)
    assert torch.equal(logits, before)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[requests, vocab\]"):
        sample(torch.zeros(2, 5), [request()])
    with pytest.raises(ValueError, match="2 masks"):
        sample(torch.zeros(1, 5), [request()], [None, None])
    with pytest.raises(ValueError, match=r"needs int32 \[1\]"):
        sample(torch.zeros(1, 5), [request()], [np.zeros(2, np.int32)])
    assert sample(torch.zeros(0, 5), []) == ((), (), ())


def test_splitmix64_gives_its_published_sequence() -> None:
    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * hashed_random.GOLDEN
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert hashed_random.mix64(states).tolist() == wanted


def test_streams_of_seeds_that_differ_by_the_step_of_the_generator_do_not_overlap() -> None:
    step = int(hashed_random.GOLDEN)
    ahead = hashed_random.uniform([7] * 100, list(range(1, 101)))
    assert not set(ahead) & set(hashed_random.uniform([7 + step] * 100, list(range(100))))


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2.0**-52])
def test_no_random_number_picks_a_token_of_probability_zero(u: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed_random, "uniform", lambda seeds, _: np.full(len(seeds), u))
    logits = torch.full((1, VOCAB), -math.inf)
    logits[0, [30, 60]] = torch.tensor([0.3, 0.7]).log()
    wanted = 30 if u == 0 else 60
    assert sample(logits, [request()]).tokens == (wanted,)
    assert sample(logits, [request(top_p=0.999)]).tokens == ((60,) if u < 0.7 else (30,)), "likeliest first"


def test_hashed_numbers_are_uniform_along_seeds_and_along_positions() -> None:
    n = 1 << 14
    for seeds, counters in [(list(range(n)), [0] * n), ([2**63 - 1] * n, list(range(n)))]:
        u = hashed_random.uniform(seeds, counters)
        assert u.min() >= 0
        assert u.max() < 1
        assert stats.kstest(u, "uniform").pvalue > 1e-3
        pairs, _, _ = np.histogram2d(u[:-1], u[1:], bins=8)
        assert stats.chisquare(pairs.ravel()).pvalue > 1e-3, "a number tells about the next"
