"""The mixture of experts against float64, wherever its tokens go."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from engine.kernels.chips import CHIPS
from engine.kernels.moe import DTYPES, STORED, _shape, moe, moe_reference
from engine.kernels.moe_tiles import TILES, most_tiles, shape_of
from engine.kernels.tiles import Tile, current_gpu, target

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
SMALL = Tile({"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "GROUP_M": 2}, 4, 2)
"""So that few numbers need many tiles."""


class Inputs(NamedTuple):
    x: Tensor
    gate_up: Tensor
    down: Tensor
    chosen: Tensor
    shares: Tensor
    gate_up_scale: Tensor | None = None
    down_scale: Tensor | None = None

    def run(self, tile: Tile | None = None) -> Tensor:
        """On a poisoned output."""
        out = torch.full_like(self.x, torch.nan)
        scales = {"gate_up_scale": self.gate_up_scale, "down_scale": self.down_scale}
        assert moe(*self[:5], **scales, out=out, tile=tile) is out
        return out

    def error(self, y: Tensor) -> float:
        """||y - reference|| / ||reference|| in float64."""
        wide = [None if one is None else one.double() for one in self]
        scales = {"gate_up_scale": wide[5], "down_scale": wide[6]}
        reference = moe_reference(wide[0], wide[1], wide[2], self.chosen, wide[4], **scales)
        return float((y.double() - reference).norm() / reference.norm())


def inputs(
    tokens: int,
    k: int,
    experts: int,
    hidden: int,
    inner: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    stored: torch.dtype | None = None,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x = random(tokens, hidden).to(device, dtype)
    weights = [random(experts, 2 * inner, hidden), random(experts, hidden, inner)]
    scales: list[Tensor | None] = [None, None]
    if stored is not None:
        weights = [(30 * one).clamp(-127, 127) for one in weights]
        scales = [(0.5 + random(*one.shape[:2]).abs()).to(device) / 30 for one in weights]
    gate_up, down = (one.to(stored or dtype).to(device) for one in weights)
    chosen = torch.rand(tokens, experts, generator=generator).topk(k, dim=1).indices.to(device)
    shares = torch.rand(tokens, k, generator=generator).to(device)
    return Inputs(x, gate_up, down, chosen, shares, *scales)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "k", "experts", "hidden", "inner"),
    [(1, 1, 1, 16, 16), (1, 2, 8, 64, 48), (5, 2, 8, 40, 24), (37, 3, 5, 50, 33), (19, 8, 8, 33, 1), (70, 2, 3, 1, 17)],
)
def test_matches_float64(
    dtype: torch.dtype, tokens: int, k: int, experts: int, hidden: int, inner: int, device: torch.device
) -> None:
    given = inputs(tokens, k, experts, hidden, inner, dtype, device, seed=tokens)
    assert given.error(given.run()) < TOLERANCE[dtype]
    assert given.error(given.run(SMALL)) < TOLERANCE[dtype]


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_of_8_bits_are_their_scales_times_what_is_stored(
    dtype: torch.dtype, stored: torch.dtype, device: torch.device
) -> None:
    if device.type == "cuda" and stored == torch.float8_e4m3fn and current_gpu().capability < 89:
        pytest.skip("this GPU has no float8")
    given = inputs(11, 2, 4, 48, 33, dtype, device, stored=stored)
    assert given.error(given.run()) < TOLERANCE[dtype]
    assert given.error(given.run(SMALL)) < TOLERANCE[dtype]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_matches_the_experts_of_transformers(k: int, device: torch.device) -> None:
    given = inputs(23, k, 4, 40, 24, torch.float32, device, seed=k)
    config = MixtralConfig(hidden_size=40, intermediate_size=24, num_local_experts=4, num_experts_per_tok=k)
    experts = MixtralExperts(config).to(device).double()
    with torch.no_grad():
        experts.gate_up_proj.copy_(given.gate_up)
        experts.down_proj.copy_(given.down)
        theirs = experts(given.x.double(), given.chosen, given.shares.double())
    assert (given.run().double() - theirs).norm() / theirs.norm() < TOLERANCE[torch.float32]


@settings(max_examples=25)
@given(data=st.data())
def test_matches_float64_however_tokens_split_among_experts(data: st.DataObject) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    experts = data.draw(st.integers(1, 9), "experts")
    k = data.draw(st.integers(1, min(8, experts)), "k")
    given = inputs(
        data.draw(st.integers(1, 40), "tokens"),
        k,
        experts,
        data.draw(st.integers(1, 40), "hidden"),
        data.draw(st.integers(1, 40), "inner"),
        torch.float32,
        device,
    )
    kind = torch.int32 if data.draw(st.booleans(), "int32") else torch.int64
    chosen = data.draw(
        st.lists(
            st.permutations(range(experts)).map(lambda order: order[:k]),
            min_size=len(given.x),
            max_size=len(given.x),
        ),
        "chosen",
    )
    given = given._replace(chosen=torch.tensor(chosen, dtype=kind, device=device))
    assert given.error(given.run(SMALL)) < TOLERANCE[torch.float32]


def test_all_tokens_may_take_one_expert(device: torch.device) -> None:
    given = inputs(50, 1, 8, 40, 24, torch.float32, device)
    for expert in (0, 3, 7):
        one = given._replace(chosen=torch.full((50, 1), expert, device=device))
        assert one.error(one.run(SMALL)) < TOLERANCE[torch.float32]


def test_an_expert_may_be_taken_twice(device: torch.device) -> None:
    given = inputs(6, 2, 4, 24, 16, torch.float32, device)
    twice = given._replace(chosen=given.chosen[:, :1].repeat(1, 2))
    assert twice.error(twice.run()) < TOLERANCE[torch.float32]


def test_weights_of_experts_that_nobody_takes_arent_read(device: torch.device) -> None:
    given = inputs(20, 2, 6, 40, 24, torch.float32, device)
    given = given._replace(chosen=given.chosen % 2 * 2 + torch.arange(2, device=device))  # never experts 4 and 5
    expected = given.run()
    given.gate_up[4:], given.down[4:] = torch.nan, torch.nan
    assert torch.equal(given.run(), expected)


def test_a_token_with_an_expert_that_isnt_there_gets_nan_and_the_others_what_is_theirs(device: torch.device) -> None:
    given = inputs(20, 2, 4, 40, 24, torch.float32, device)
    expected = given.run()
    wrong = given.chosen.clone()
    wrong[3, 0], wrong[7, 1], wrong[11, 0] = 4, -1, 2**32 + 1
    y = given._replace(chosen=wrong).run()
    others = [token for token in range(20) if token not in (3, 7, 11)]
    assert torch.equal(y[others], expected[others])
    assert y[[3, 7, 11]].isnan().all()
    reference = moe_reference(*given._replace(chosen=wrong)[:5])
    assert torch.equal(reference.isnan(), y.isnan())


def test_tokens_that_arent_finite_stay_alone(device: torch.device) -> None:
    given = inputs(20, 2, 4, 40, 24, torch.float32, device)
    expected = given.run()
    given.x[3], given.x[11] = torch.nan, torch.nan
    y = given.run()
    kept = [token for token in range(20) if token not in (3, 11)]
    assert torch.equal(y[kept], expected[kept])
    assert y[[3, 11]].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_token_has_the_same_bits_in_any_batch(dtype: torch.dtype, device: torch.device) -> None:
    given = inputs(90, 2, 4, 40, 32, dtype, device)
    together = given.run()
    for tokens in (1, 17, 64):
        few = given._replace(x=given.x[-tokens:], chosen=given.chosen[-tokens:], shares=given.shares[-tokens:])
        assert torch.equal(few.run(), together[-tokens:]), f"the last {tokens} tokens"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_tile_of_a_chip_gives_the_same_bits(dtype: torch.dtype, device: torch.device) -> None:
    given = inputs(20, 2, 3, 48, 32, dtype, device)
    expected = given.run()
    chips = [current_gpu().capability] if device.type == "cuda" else list(CHIPS)
    shape = _shape(given.x, given.gate_up, given.chosen)
    tiles = [tile for chip in chips for tile in TILES.candidates(chip, shape)]
    for i, tile in enumerate(tiles):
        if tile not in tiles[:i]:
            assert torch.equal(given.run(tile), expected), tile


def test_rows_may_be_parts_of_wider_ones(device: torch.device) -> None:
    given = inputs(7, 2, 4, 40, 24, torch.float32, device)
    wide = torch.zeros(7, 60, device=device)
    wide[:, 8:48] = given.x
    out = torch.full((7, 60), torch.nan, device=device)
    moe(wide[:, 8:48], *given[1:5], out=out[:, 4:44])
    assert torch.equal(out[:, 4:44], given.run())
    assert out[:, :4].isnan().all()
    assert out[:, 44:].isnan().all()


def test_no_tokens_are_no_work(device: torch.device) -> None:
    given = inputs(3, 2, 4, 40, 24, torch.float32, device)
    none = given._replace(x=given.x[:0], chosen=given.chosen[:0], shares=given.shares[:0])
    assert none.run().shape == (0, 40)


@pytest.mark.parametrize("chip", sorted(CHIPS))
@pytest.mark.parametrize(("dtype", "weights"), [("bfloat16", "bfloat16"), ("bfloat16", "int8"), ("float32", "float32")])
def test_defaults_are_among_what_tuning_tries_and_grow_with_the_rows_of_an_expert(
    chip: int, dtype: str, weights: str
) -> None:
    shapes = [shape_of(pairs, 8, 4096, 14336, dtype, weights) for pairs in (1, 2, 16, 64, 512, 4096, 16384)]
    chosen = [TILES.default(chip, shape) for shape in shapes]
    for tile, shape in zip(chosen, shapes):
        assert tile in TILES.candidates(chip, shape)
    sizes = [tile.constants["BLOCK_M"] for tile in chosen]
    assert sizes == sorted(sizes)


def test_all_tiles_of_a_chip_use_one_kind_of_matrix_instruction() -> None:
    for hidden in (4096, 1001):
        for capability in (90, 100):  # a tile of fewer rows or warps would be multiplied by mma.sync
            for tile in TILES.candidates(capability, shape_of(1, 8, hidden, 14336, "bfloat16", "bfloat16")):
                assert tile.constants["BLOCK_M"] >= 64
                assert tile.num_warps in (4, 8)


@given(split=st.lists(st.integers(0, 300), min_size=1, max_size=20), rows=st.sampled_from([16, 64, 128]))
def test_the_grid_holds_any_split_among_experts(split: list[int], rows: int) -> None:
    needed = sum(-(-pairs // rows) for pairs in split)
    assert needed <= most_tiles(sum(split), len(split), rows) <= sum(split)


def test_what_doesnt_fit_is_refused(device: torch.device) -> None:
    x, gate_up, down, chosen, shares, *_ = inputs(3, 2, 4, 16, 8, torch.float32, device)
    with pytest.raises(ValueError, match=r"x is torch\.float64"):
        moe(x.double(), gate_up, down, chosen, shares)
    with pytest.raises(ValueError, match=r"down \[4, 16, 7\]"):
        moe(x, gate_up, down[:, :, :7], chosen, shares)
    with pytest.raises(ValueError, match=r"must be \[experts, 2 \* inner, 16\]"):
        moe(x, gate_up[:, :, :15], down, chosen, shares)
    with pytest.raises(ValueError, match=r"must be \[experts, 2 \* inner, 16\]"):
        moe(x, torch.ones(4, 17, 16, device=device), down, chosen, shares)
    with pytest.raises(ValueError, match=r"gate_up torch\.float16, down torch\.float32"):
        moe(x, gate_up.half(), down, chosen, shares)
    eight = gate_up.to(torch.int8), down.to(torch.int8)
    with pytest.raises(ValueError, match=r"gate_up_scale is missing and the weights are torch\.int8"):
        moe(x, *eight, chosen, shares)
    scale = torch.ones(4, 16, device=device)
    with pytest.raises(ValueError, match=r"down_scale is given and the weights are torch\.float32"):
        moe(x, gate_up, down, chosen, shares, down_scale=scale)
    with pytest.raises(ValueError, match=r"down_scale is torch\.float32 \[4, 15\]"):
        moe(x, *eight, chosen, shares, gate_up_scale=scale, down_scale=scale[:, :15])
    with pytest.raises(ValueError, match=r"chosen is \[2, 2\]; it must be \[3, k\]"):
        moe(x, gate_up, down, chosen[:2], shares)
    with pytest.raises(ValueError, match=r"chosen is torch\.int16"):
        moe(x, gate_up, down, chosen.short(), shares)
    with pytest.raises(ValueError, match=r"shares is torch\.float32 \[3, 1\]"):
        moe(x, gate_up, down, chosen, shares[:, :1])
    with pytest.raises(ValueError, match=r"out is .* must be torch\.float32 \[3, 16\]"):
        moe(x, gate_up, down, chosen, shares, out=torch.empty(3, 15, device=device))
    with pytest.raises(ValueError, match="down has strides"):
        moe(x, gate_up, down.transpose(1, 2).contiguous().transpose(1, 2), chosen, shares)


def test_float8_is_refused_where_the_gpu_has_none(device: torch.device) -> None:
    given = inputs(3, 2, 4, 16, 16, torch.bfloat16, device, stored=torch.float8_e4m3fn)
    with target(CHIPS[86].gpu), pytest.raises(ValueError, match="sm_86: float8 needs sm_89; use int8"):
        given.run()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_graph_replays_it_for_other_tokens_and_nobody_waits_for_the_device(device: torch.device) -> None:
    first, other = (inputs(300, 2, 8, 256, 512, torch.bfloat16, device, seed=seed) for seed in (0, 1))
    expected = other._replace(gate_up=first.gate_up, down=first.down).run()
    out = torch.empty_like(first.x)
    moe(*first[:5], out=out)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    torch.cuda.set_sync_debug_mode("error")
    try:
        moe(*first[:5], out=out)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with torch.cuda.graph(graph):
        moe(*first[:5], out=out)
    for mine, theirs in ((first.x, other.x), (first.chosen, other.chosen), (first.shares, other.shares)):
        mine.copy_(theirs)
    graph.replay()
    assert torch.equal(out, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_token_of_mixtral_has_the_same_bits_in_any_batch(device: torch.device) -> None:
    given = inputs(1024, 2, 8, 1024, 3584, torch.bfloat16, device)
    together = given.run()
    for tokens in (1, 2, 8, 31, 64, 200, 511):
        few = given._replace(x=given.x[-tokens:], chosen=given.chosen[-tokens:], shares=given.shares[-tokens:])
        assert torch.equal(few.run(), together[-tokens:]), f"the last {tokens} tokens"
