"""The router's choice is that of transformers' Mixtral."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from engine.kernels.chips import CHIPS
from engine.kernels.route import DTYPES, TILES, _shape, route, route_reference

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered")  # the interpreter's: inf - inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("experts", "k"), [(8, 2), (8, 1), (5, 3), (4, 4)])
def test_experts_and_shares_are_those_of_transformers(
    experts: int, k: int, dtype: torch.dtype, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(experts)
    config = MixtralConfig(hidden_size=24, num_local_experts=experts, num_experts_per_tok=k)
    router = MixtralTopKRouter(config).to(device, dtype)
    with torch.no_grad():
        router.weight.copy_(torch.randn(experts, 24, generator=generator))
        logits, shares, chosen = router(torch.randn(200, 24, generator=generator).to(device, dtype))
    distinct = torch.tensor([len(row.unique()) == experts for row in logits])  # their top-k leaves ties open
    assert distinct.float().mean() > 0.5
    found = route(logits, k)
    assert torch.equal(found.chosen[distinct].long(), chosen[distinct])
    torch.testing.assert_close(found.shares[distinct], shares[distinct].float(), rtol=1e-6, atol=1e-7)


@settings(max_examples=25)
@given(rows=st.lists(st.lists(st.integers(-3, 3), min_size=6, max_size=6), min_size=1, max_size=9), k=st.integers(1, 6))
def test_equal_logits_go_to_the_lower_expert(rows: list[list[int]], k: int) -> None:
    logits = torch.tensor(rows, dtype=torch.float32, device="cuda" if torch.cuda.is_available() else "cpu")
    found, expected = route(logits, k), route_reference(logits.double(), k)
    assert torch.equal(found.chosen, expected.chosen)
    torch.testing.assert_close(found.shares.double(), expected.shares, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("experts", "k"), [(60, 4), (128, 8), (1, 1), (3, 2)])
def test_many_experts_and_few(experts: int, k: int, device: torch.device) -> None:
    logits = torch.randn(70, experts, generator=torch.Generator().manual_seed(k)).to(device)
    for tile in TILES.candidates(90, _shape(experts, k, logits.dtype)):
        found, expected = route(logits, k, tile=tile), route_reference(logits.double(), k)
        assert torch.equal(found.chosen, expected.chosen)
        torch.testing.assert_close(found.shares.double(), expected.shares, rtol=1e-6, atol=1e-7)


def test_logits_whose_probabilities_round_to_the_same_are_still_told_apart(device: torch.device) -> None:
    logits = torch.tensor([[0.0, -300.0, -200.0, -250.0]], device=device)
    assert route(logits, 3).chosen.tolist() == [[0, 2, 3]]


def test_logits_of_minus_infinity_are_taken_last(device: torch.device) -> None:
    inf = torch.inf
    found = route(torch.tensor([[-inf, 1.0, -inf, 1.0]], device=device), 4)
    assert found.chosen.tolist() == [[1, 3, 0, 2]]
    assert found.shares.tolist() == [[0.5, 0.5, 0.0, 0.0]]


def test_tokens_without_finite_logits_get_experts_that_exist_and_stay_alone(device: torch.device) -> None:
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(device)
    expected = route(logits, 2)
    logits[1], logits[3, 2], logits[4, 0] = torch.nan, torch.nan, torch.inf
    found = route(logits, 2)
    kept = [0, 2, 5]
    assert torch.equal(found.chosen[kept], expected.chosen[kept])
    assert torch.equal(found.shares[kept], expected.shares[kept])
    assert found.shares[[1, 3]].isnan().all()
    assert found.shares[4].isnan().any()
    assert ((found.chosen >= 0) & (found.chosen < 5)).all()


def test_rows_may_be_parts_of_wider_ones(device: torch.device) -> None:
    wide = torch.randn(9, 20, generator=torch.Generator().manual_seed(1)).to(device)
    found, expected = route(wide[:, 3:11], 2), route(wide[:, 3:11].contiguous(), 2)
    assert torch.equal(found.chosen, expected.chosen)
    assert torch.equal(found.shares, expected.shares)


def test_no_tokens_are_no_work(device: torch.device) -> None:
    assert [tuple(part.shape) for part in route(torch.empty(0, 8, device=device), 2)] == [(0, 2), (0, 2)]


def test_the_default_tile_is_one_that_tuning_tries() -> None:
    for capability in CHIPS:
        for experts in (1, 8, 300, 4096):
            shape = _shape(experts, 1, torch.bfloat16)
            assert TILES.default(capability, shape) in TILES.candidates(capability, shape)


def test_what_cant_be_routed_is_refused(device: torch.device) -> None:
    logits = torch.ones(3, 8, device=device)
    for k in (0, 9):
        with pytest.raises(ValueError, match=f"k is {k}; .* of the 8 experts"):
            route(logits, k)
    with pytest.raises(ValueError, match="float64"):
        route(logits.double(), 2)
    with pytest.raises(ValueError, match="rows contiguous"):
        route(logits.T, 2)
