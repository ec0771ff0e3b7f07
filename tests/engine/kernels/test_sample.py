"""The sampling kernels against a reference with sorts, in law, and against themselves in other batches and tiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from scipy import stats
from torch import Tensor

from engine import hashed_random
from engine.kernels import sample as family
from engine.kernels.sample import (
    FORBIDDEN,
    INFINITE,
    NAN,
    NOTHING,
    OK,
    TILES,
    Draws,
    Penalties,
    Sampling,
    sample,
    sample_reference,
)
from engine.kernels.sample_kernels import _uniform
from engine.kernels.tiles import Gpu, Tile, target

TILE = Tile({"BLOCK": 128}, 4, 1)
FEW = Gpu("", 90, 2)
"""Few processors: few programs a row, which the interpreter runs one after another."""

CUTS: list[dict[str, float]] = [
    {},
    {"temperature": 0.4},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 10**6},
    {"top_p": 1e-9},
    {"top_p": 0.5, "temperature": 1.7},
    {"top_p": 0.95},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"min_p": 1.0, "top_p": 0.9},
    {"top_k": 20, "top_p": 0.8},
    {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 1.3},
]


@triton.jit
def uniform_kernel(seeds, positions, out):  # type: ignore[no-untyped-def]  # the compiler reads annotations as types
    i = tl.program_id(0)
    tl.store(out + i, _uniform(tl.load(seeds + i), tl.load(positions + i)))


@pytest.fixture(autouse=True)
def few_programs(device: torch.device) -> Any:
    if device.type == "cuda":
        yield
        return
    with target(FEW):
        yield


def logits_of(seed: int, rows: int, vocab: int, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


def draws_of(cuts: list[dict[str, float]], device: torch.device, seed: int = 0, rows: list[int] | None = None) -> Draws:
    def each(name: str, default: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([cut.get(name, default) for cut in cuts], dtype=dtype, device=device)

    return Draws(
        torch.tensor(rows or list(range(len(cuts))), dtype=torch.int32, device=device),
        each("temperature", 1.0, torch.float32),
        each("top_k", 0, torch.int32),
        each("top_p", 1.0, torch.float64),
        each("min_p", 0.0, torch.float32),
        torch.arange(seed, seed + len(cuts), device=device),
        torch.tensor([i % 5 for i in range(len(cuts))], device=device),
    )


def penalties_of(lists: list[dict[str, Any]], device: torch.device) -> Penalties:
    """Each with row, tokens, counts, forbidden, repetition, presence, frequency."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    def ragged(name: str) -> tuple[Tensor, Tensor]:
        parts = [each.get(name, []) for each in lists]
        return ints(np.cumsum([0, *map(len, parts)]).tolist()), ints([x for part in parts for x in part])

    def amounts(name: str, default: float) -> Tensor:
        return torch.tensor([each.get(name, default) for each in lists], dtype=torch.float32, device=device)

    first, tokens = ragged("tokens")
    forbidden_first, forbidden = ragged("forbidden")
    return Penalties(
        ints([each["row"] for each in lists]),
        first,
        tokens,
        ragged("counts")[1],
        amounts("repetition", 1.0),
        amounts("presence", 0.0),
        amounts("frequency", 0.0),
        forbidden_first,
        forbidden,
    )


def packed(allowed: list[list[int]], vocab: int, device: torch.device) -> Tensor:
    words = np.zeros((len(allowed), (vocab + 31) // 32), np.uint32)
    for row, tokens in zip(words, allowed):
        for token in tokens:
            row[token // 32] |= np.uint32(1 << (token % 32))
    return torch.from_numpy(words.view(np.int32)).to(device)


def check(logits: Tensor, params: Sampling, tile: Tile = TILE, **options: Any) -> Tensor:
    """The kernels choose what the reference chooses, into poisoned memory; the tokens."""
    n = len(logits) if params.rows is None else len(params.rows)
    out = torch.full((n,), -9, dtype=torch.int64, device=logits.device)
    status = torch.full((n,), -9, dtype=torch.int32, device=logits.device)
    before = logits.clone()
    sample(logits, params, out=out, status=status, tile=tile, **options)
    wanted = sample_reference(logits, params, **options)
    assert status.tolist() == wanted.status.tolist()
    assert out.tolist() == wanted.tokens.tolist()
    assert torch.equal(logits, before) or logits.isnan().any()
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 1000])
def test_greedy_takes_the_likeliest_and_the_lower_id_of_equals(
    vocab: int, dtype: torch.dtype, device: torch.device
) -> None:
    logits = logits_of(vocab, 5, vocab, 1.0, dtype).to(device)
    logits[1] = (logits[1] * 2).round()
    logits[2] = -7.0
    logits[3] = 0.0
    logits[3, ::2] = -0.0
    assert check(logits, Sampling())[2:4].tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [33, 200])
def test_the_token_of_the_sorted_cumulative_distribution_is_drawn(
    vocab: int, dtype: torch.dtype, device: torch.device
) -> None:
    logits = logits_of(vocab, len(CUTS), vocab, 2.0, dtype).to(device)
    check(logits, Sampling(draws=draws_of(CUTS, device, seed=vocab)))


@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 40, "top_p": 0.5}], ids=str)
def test_equal_logits_are_taken_by_id(cut: dict[str, float], device: torch.device) -> None:
    logits = torch.zeros(4, 200, device=device)
    logits[1, 77:] = 1.0
    logits[2, ::3] = 0.5
    logits[3] = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(0)).to(logits)
    tokens = check(logits, Sampling(draws=draws_of([cut] * 4, device)))
    if cut == {"top_k": 5}:
        assert tokens[0] < 5
        assert 77 <= tokens[1] < 82


def test_distributions_of_any_flatness_and_offset(device: torch.device) -> None:
    cut = {"top_p": 0.9}
    scales = (1e-6, 0.1, 30.0, 3000.0)
    logits = torch.cat([logits_of(i, 1, 200, scale) + 100.0 * i for i, scale in enumerate(scales)]).to(device)
    check(logits, Sampling(draws=draws_of([cut] * 4, device)))
    check(logits, Sampling(draws=draws_of([{"top_k": 60}] * 4, device)))


@pytest.mark.parametrize("temperature", [float(np.finfo(np.float32).tiny), 1e-6, 1e30])
def test_extreme_temperatures(temperature: float, device: torch.device) -> None:
    logits = logits_of(1, 2, 100).to(device)
    cuts = [{"temperature": temperature}, {"temperature": temperature, "top_p": 0.7}]
    tokens = check(logits, Sampling(draws=draws_of(cuts, device)))
    if temperature < 1:
        assert torch.equal(tokens, logits.argmax(-1))


def test_a_second_survey_and_lists_of_few_rows_change_nothing(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = [CUTS[i] for i in (0, 6, 8, 11)]
    logits = logits_of(5, 4, 200, 0.5).to(device)
    params = Sampling(draws=draws_of(cuts, device))
    plain = check(logits, params)
    monkeypatch.setattr(family, "ENOUGH", 0)
    assert torch.equal(check(logits, params), plain)
    monkeypatch.setattr(family, "LIST_BYTES", 8 * 200 * 3)
    assert torch.equal(check(logits, params), plain)


@pytest.mark.parametrize("cut", [{}, {"temperature": 0.7}, {"top_k": 4, "top_p": 0.9}, {"min_p": 0.2}], ids=str)
def test_draws_follow_the_distribution(cut: dict[str, float], device: torch.device) -> None:
    row = torch.tensor([[1.0, 0.2, -1.0, 0.9, 0.0, 0.7]], device=device)
    tile = Tile({"BLOCK": 16}, 1, 1)

    def asked(n: int) -> Sampling:
        zeros = torch.zeros(n, dtype=torch.int64, device=device)
        return Sampling(rows=zeros, draws=draws_of([cut] * n, device, seed=100))

    if device.type == "cuda":
        n = 20_000
        tokens = sample(row, asked(n), tile=tile).tokens
    else:  # too many for the interpreter: the reference follows the distribution, and the kernels follow it
        n = 2000
        tokens = sample_reference(row, asked(n)).tokens
        assert torch.equal(sample(row, asked(24), tile=tile).tokens, tokens[:24])
    p = torch.softmax(row[0].double().cpu() / cut.get("temperature", 1.0), -1)
    order = p.argsort(descending=True)
    before = torch.zeros_like(p)
    if "top_k" in cut:
        p[order[int(cut["top_k"]) :]] = 0
    before[order] = p[order].cumsum(0) - p[order]
    p[before >= cut.get("top_p", 1.0) * p.sum() - 1e-9] = 0
    p[p < cut.get("min_p", 0.0) * p.max()] = 0
    p /= p.sum()
    counts = np.bincount(tokens.cpu().numpy(), minlength=6)
    kept = p.numpy() > 0
    assert counts[~kept].sum() == 0
    assert stats.chisquare(counts[kept], p.numpy()[kept] * n).pvalue > 1e-3


def test_a_row_is_drawn_the_same_alone_in_any_batch_by_any_tile_and_on_any_gpu(device: torch.device) -> None:
    vocab, n = 200, 4
    logits = logits_of(8, n, vocab, 1.0, torch.bfloat16).to(device)
    cuts = [CUTS[i] for i in (0, 3, 7, 12)]
    together = sample(logits, Sampling(draws=draws_of(cuts, device)), tile=TILE).tokens
    for i in range(n):
        alone = draws_of(cuts, device)
        alone = Draws(*(of_each[i : i + 1] for of_each in alone))._replace(row=torch.zeros_like(alone.row[:1]))
        assert torch.equal(sample(logits[i : i + 1], Sampling(draws=alone), tile=TILE).tokens, together[i : i + 1])
    order = torch.tensor([2, 0, 3, 1], device=device)
    mixed = Draws(*(of_each[order] for of_each in draws_of(cuts, device)))
    shuffled = Sampling(rows=order, draws=mixed._replace(row=torch.arange(n, dtype=torch.int32, device=device)))
    assert torch.equal(sample(logits, shuffled, tile=TILE).tokens, together[order])
    for tile, processors in ((Tile({"BLOCK": 32}, 2, 1), 2), (Tile({"BLOCK": 512}, 4, 1), 1), (TILE, 8)):
        with target(Gpu("", 90, processors)):
            assert torch.equal(sample(logits, Sampling(draws=draws_of(cuts, device)), tile=tile).tokens, together)


@pytest.mark.parametrize("vocab", [32, 45, 130])
def test_masks_penalties_and_forbidden_tokens(vocab: int, device: torch.device) -> None:
    rng = np.random.default_rng(vocab)
    n = 6
    logits = logits_of(vocab, n + 2, vocab).to(device)
    allowed = [rng.choice(vocab, size, replace=False).tolist() for size in (vocab, 1, 5)]
    lists = []
    for row, (r, p, f) in zip((0, 3, 4, 5), ((1.4, 0, 0), (0.7, 0.5, 0), (1.0, -1.0, 0.3), (1.0, 0.0, 0.0))):
        seen = rng.choice(vocab + 9, 20, replace=False).tolist()
        counts = rng.integers(0, 4, 20).tolist()
        forbidden = rng.choice(vocab, 3, replace=False).tolist() if row > 3 else []
        each = {"row": row, "tokens": seen, "counts": counts, "forbidden": forbidden}
        lists.append({**each, "repetition": r, "presence": p, "frequency": f})
    place = {each["row"]: i for i, each in enumerate(lists)}
    params = Sampling(
        rows=torch.tensor([7, 0, 2, 1, 4, 4], device=device),
        mask_row=torch.tensor([0, 1, -1, 2, -1, 0], dtype=torch.int32, device=device),
        penalised=torch.tensor([place.get(i, -1) for i in range(n)], dtype=torch.int32, device=device),
        penalties=penalties_of(lists, device),
    )
    mask = packed(allowed, vocab, device)
    assert check(logits, params, mask=mask)[1] == allowed[1][0]
    some = draws_of([{}, {"top_k": 3}, {"top_p": 0.9}, {}], device, rows=[5, 1, 3, 0])
    assert check(logits, params._replace(draws=some), mask=mask)[1] == allowed[1][0]


def test_one_mask_a_row_needs_no_index(device: torch.device) -> None:
    logits = logits_of(3, 2, 70).to(device)
    assert check(logits, Sampling(), mask=packed([[69], [3]], 70, device)).tolist() == [69, 3]


def test_each_thing_that_can_be_wrong_with_a_row_is_told_and_the_others_go_on(device: torch.device) -> None:
    vocab = 140
    logits = logits_of(4, 9, vocab).to(device)
    logits[1, 139] = math.nan
    logits[2, 3] = math.inf
    logits[3] = -math.inf
    logits[4, 1:] = -math.inf
    logits[6, 5] = math.nan  # where the mask and the forbidden list hide it
    logits[7, 5] = -math.nan
    lists = [{"row": 4, "forbidden": [0]}, {"row": 6, "forbidden": [5]}]
    forced = torch.full((9,), -1, dtype=torch.int32, device=device)
    forced[8] = 17
    params = Sampling(
        forced=forced,
        mask_row=torch.tensor([-1] * 5 + [0, 1, 1, -1], dtype=torch.int32, device=device),
        penalised=torch.tensor([-1, -1, -1, -1, 0, -1, 1, -1, -1], dtype=torch.int32, device=device),
        penalties=penalties_of(lists, device),
    )
    mask = packed([[], [1, 2]], vocab, device)
    for drawn in (None, draws_of([{}, {"top_k": 2}] * 4, device)):
        choice = sample(logits, params._replace(draws=drawn), mask=mask, tile=TILE)
        assert choice.status.tolist() == [OK, NAN, INFINITE, NOTHING, FORBIDDEN, FORBIDDEN, NAN, NAN, OK]
        assert choice.tokens[[1, 2, 3, 4, 5, 6, 7]].tolist() == [0] * 7, "an id that a step under way may look up"
        assert choice.tokens[8] == 17
        check(logits, params._replace(draws=drawn), mask=mask)


def test_the_random_number_is_the_cpus_bit_for_bit(device: torch.device) -> None:
    seeds = [0, 1, 2**63 - 1, 2**62 + 12345, 987654321]
    positions = [0, 1, 5, 2**31, 77]
    out = torch.full((5,), math.nan, dtype=torch.float64, device=device)
    uniform_kernel[(5,)](torch.tensor(seeds, device=device), torch.tensor(positions, device=device), out)
    assert out.tolist() == hashed_random.uniform(seeds, positions).tolist()


def test_no_rows_are_no_work(device: torch.device) -> None:
    assert sample(torch.empty(0, 5, device=device), Sampling()).tokens.shape == (0,)


def test_the_default_tile_is_one_that_tuning_tries() -> None:
    for capability in (80, 86, 90, 100):
        for dtype in ("float32", "bfloat16"):
            assert TILES.default(capability, {"dtype": dtype}) in TILES.candidates(capability, {"dtype": dtype})


def test_what_cannot_be_sampled_from_is_refused(device: torch.device) -> None:
    logits = torch.zeros(2, 40, device=device)
    with pytest.raises(ValueError, match="float64"):
        sample(logits.double(), Sampling())
    with pytest.raises(ValueError, match="contiguous rows"):
        sample(torch.zeros(40, 2, device=device).T, Sampling())
    with pytest.raises(ValueError, match=r"int32 \[masks, 2\]"):
        sample(logits, Sampling(), mask=torch.zeros(2, 1, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="give one each"):
        sample(logits, Sampling(), mask=torch.zeros(3, 2, dtype=torch.int32, device=device))
    with pytest.raises(ValueError, match="out is"):
        sample(logits, Sampling(), out=torch.zeros(3, dtype=torch.int64, device=device))
    with pytest.raises(ValueError, match="go together"):
        sample(logits, Sampling(penalised=torch.zeros(2, dtype=torch.int32, device=device)))
