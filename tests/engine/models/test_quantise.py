"""Weights in 8 bits: how far they are from what they stand for, which they are, and what they take."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.config import WEIGHTS, ConfigError, EngineConfig
from engine.executor.gpu_memory import GIB, check_weights
from engine.kernels.cpu.linear import Linear
from engine.models import ModelError, load_model
from engine.models import quantise as quantise_module
from engine.models.config import ModelConfig
from engine.models.mixtral import SparseMoE
from engine.models.quantise import KINDS, dequantised, is_quantised, quantise, weight_bytes
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights, Tensors, build, save_random, tensor_shapes

SMALL = replace(SHAPES["tiny"], n_layers=1, hidden_size=48, n_heads=3, n_kv_heads=1, tied_embeddings=False)


def bound(weight: torch.Tensor, scale: torch.Tensor, kind: str) -> torch.Tensor:
    """Of the error of each number: half a step of int8; of float8_e4m3 half of the last of 3 bits, or of 2**-9."""
    scale = scale.double().unsqueeze(-1)
    if kind == "int8":
        return (scale / 2).expand_as(weight)
    return torch.maximum(weight.double().abs() / 16, scale / 1024)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(
    outputs=st.integers(1, 9),
    inputs=st.integers(1, 40),
    spread=st.sampled_from([1e-30, 1e-3, 1.0, 1e6, 1e30]),
    seed=st.integers(0, 99),
)
def test_every_number_is_within_half_a_step_of_its_channel(
    kind: str, outputs: int, inputs: int, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = spread * torch.randn(outputs, inputs, generator=generator)
    weight *= 10.0 ** torch.randint(-3, 4, (outputs, 1), generator=generator)  # channels of different sizes
    stored, scale = quantise(weight, kind)
    assert (stored.dtype, scale.dtype, tuple(scale.shape)) == (KINDS[kind], torch.float32, (outputs,))
    error = (dequantised(quantise_module.Quantised(stored, scale), torch.float64) - weight.double()).abs()
    assert (error <= bound(weight, scale, kind) * (1 + 1e-5)).all()
    assert torch.equal(stored.float().abs().amax(1), torch.full((outputs,), quantise_module.LARGEST[KINDS[kind]]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_of_zeros_stays_zero(kind: str) -> None:
    weight = torch.zeros(3, 8)
    weight[1, 2] = -5.0
    made = quantise(weight, kind)
    assert torch.equal(dequantised(made, torch.float32)[[0, 2]], torch.zeros(2, 8))
    assert dequantised(made, torch.float32)[1, 2] == pytest.approx(-5.0)


@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_quantised_as_each_would_be_alone(kind: str) -> None:
    experts = torch.randn(3, 6, 10)
    together = quantise(experts, kind)
    assert tuple(together.scale.shape) == (3, 6)
    for i, expert in enumerate(experts):
        alone = quantise(expert, kind)
        assert torch.equal(together.stored[i].float(), alone.stored.float())
        assert torch.equal(together.scale[i], alone.scale)


def test_what_is_rounded_at_a_time_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 33)
    whole = quantise(weight, "int8")
    monkeypatch.setattr(quantise_module, "_PART", 100)
    parts = quantise(weight, "int8")
    assert torch.equal(whole.stored, parts.stored)
    assert torch.equal(whole.scale, parts.scale)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_numbers_that_have_no_scale_are_refused_with_the_name_of_their_tensor(value: float) -> None:
    class Broken(RandomWeights):
        def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
            tensor = super().get(name, shape)
            if name.endswith("up_proj.weight"):
                tensor[1, 2] = value
            return tensor

    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight.*aren't finite.*int8"):
        build(SMALL, Broken(0), torch.float32, kind="int8")


@pytest.mark.parametrize("kind", KINDS)
def test_projections_and_the_head_are_in_8_bits_and_nothing_else(kind: str) -> None:
    names = list(tensor_shapes(SMALL))
    with Tensors(SMALL, RandomWeights(1), torch.bfloat16, kind=kind) as tensors:
        made = {name: tensors.matrix(name) for name in names}
    in_8_bits = {name for name, (stored, _) in made.items() if stored.dtype == KINDS[kind]}
    assert in_8_bits == {name for name in names if name.endswith("_proj.weight") or name == "lm_head.weight"}
    for name, (stored, scale) in made.items():
        assert (scale is None) == (name not in in_8_bits)
        if name not in in_8_bits:
            assert stored.dtype == torch.bfloat16


def test_experts_are_in_8_bits_and_their_routers_are_not() -> None:
    at = "model.layers.3.block_sparse_moe"
    assert all(is_quantised(f"{at}.experts.7.w{i}.weight") for i in (1, 2, 3))
    assert is_quantised("model.layers.3.mlp.experts.gate_up_proj")
    assert not is_quantised(f"{at}.gate.weight")
    assert not is_quantised("model.layers.3.mlp.gate.weight")
    assert not is_quantised("model.embed_tokens.weight")
    assert not is_quantised("model.layers.3.self_attn.q_proj.bias")


def test_a_matrix_in_8_bits_is_never_given_without_its_scale() -> None:
    with Tensors(SMALL, RandomWeights(1), torch.float32, kind="int8") as tensors:
        with pytest.raises(ValueError, match=r"stored as int8.*matrix\(\)"):
            tensors.get("lm_head.weight")
        stacked = tensors.stacked(*(f"model.layers.0.self_attn.{which}_proj" for which in "qkv"))
    alone = [quantise(RandomWeights(1).get(n, tensor_shapes(SMALL)[n]), "int8") for n in _names("qkv")]
    assert stacked.scale is not None
    assert torch.equal(stacked.weight, torch.cat([one.stored for one in alone]))
    assert torch.equal(stacked.scale, torch.cat([one.scale for one in alone]))


def _names(which: str) -> list[str]:
    return [f"model.layers.0.self_attn.{one}_proj.weight" for one in which]


def test_a_head_that_is_tied_to_the_embedding_keeps_its_dtype() -> None:
    model = load_model("tiny", "bfloat16", kind="int8")
    assert model.config.tied_embeddings
    assert (model.embedding.dtype, model.head.scale) == (torch.bfloat16, None)
    assert model.blocks[0].qkv.weight.dtype == torch.int8
    untied = build(SMALL, RandomWeights(0), torch.bfloat16, kind="int8")
    assert untied.head.weight.dtype == torch.int8


def test_what_turns_pictures_into_embeddings_keeps_its_dtype() -> None:
    model, plain = (load_model("llava-tiny", "float64", kind=kind) for kind in ("int8", None))
    assert model.blocks[0].qkv.weight.dtype == torch.int8
    assert model.vision is not None
    assert plain.vision is not None
    pictures = torch.randn(1, 3, 56, 56, dtype=torch.float64)
    assert torch.equal(model.vision(pictures), plain.vision(pictures))


def test_the_experts_of_a_layer_come_as_one_with_their_scales() -> None:
    config = SHAPES["mixtral-tiny"]
    names = [[f"model.layers.0.block_sparse_moe.experts.{i}.{w}" for w in ("w1", "w3")] for i in range(8)]
    with Tensors(config, RandomWeights(1), torch.float32, kind="int8") as tensors:
        experts = tensors.experts(names)
    with Tensors(config, RandomWeights(1), torch.float32, kind="int8") as tensors:
        alone = [tensors.stacked(*of_one) for of_one in names]
    assert experts.scale is not None
    assert (tuple(experts.weight.shape), tuple(experts.scale.shape)) == ((8, 256, 96), (8, 256))
    for i, one in enumerate(alone):
        assert one.scale is not None
        assert torch.equal(experts.weight[i], one.weight)
        assert torch.equal(experts.scale[i], one.scale)
    with Tensors(config, RandomWeights(1), torch.float32) as tensors:
        plain = tensors.experts(names)
    assert plain.scale is None
    assert plain.weight.dtype == torch.float32


# What it takes in memory


def counted(model: Any) -> int:
    """Bytes of a loaded model's tensors."""

    def of(part: Any) -> int:
        if isinstance(part, torch.Tensor):
            return part.nbytes
        if isinstance(part, Linear):
            return of([part.weight, part.bias, part.scale])
        if isinstance(part, SparseMoE):
            return of([part.router, part.experts])
        return sum(map(of, part)) if isinstance(part, tuple | list) else 0

    return of([model.embedding, model.blocks, model.norm, model.head])


@pytest.mark.parametrize("kind", [None, "int8"])
@pytest.mark.parametrize("config", [SMALL, SHAPES["mixtral-tiny"]], ids=["llama", "mixtral"])
def test_the_bytes_that_are_counted_before_loading_are_those_of_the_model(
    config: ModelConfig, kind: str | None
) -> None:
    model = build(config, RandomWeights(0), torch.float64, kind=kind)
    assert weight_bytes(tensor_shapes(config), torch.float64, kind) == counted(model)


@pytest.mark.parametrize("kind", KINDS)
def test_mixtral_8x7b_fits_on_a_gpu_of_80_gb_in_8_bits_and_not_in_16(kind: str) -> None:
    shapes = tensor_shapes(SHAPES["mixtral-8x7b"])
    experts = 32 * 8 * 3 * 4096 * 14336
    attention = 32 * (2 * 4096 * 4096 + 2 * 1024 * 4096)
    head = embedding = 32000 * 4096
    routers, norms = 32 * 8 * 4096, 65 * 4096
    scales = 32 * (8 * (2 * 14336 + 4096) + 2 * 4096 + 2 * 1024) + 32000

    whole = weight_bytes(shapes, torch.bfloat16, None)
    assert whole == 2 * (experts + attention + head + embedding + routers + norms)
    assert whole / 2 == pytest.approx(46.7e9, rel=1e-3)
    in_8_bits = weight_bytes(shapes, torch.bfloat16, kind)
    assert in_8_bits == experts + attention + head + 4 * scales + 2 * (embedding + routers + norms)
    assert in_8_bits / GIB == pytest.approx(43.7, abs=0.1)

    free = int(78.5 * GIB)  # of an H100 with 80 GB
    check_weights(in_8_bits, free, "NVIDIA H100 80GB HBM3", "mixtral-8x7b")
    with pytest.raises(ConfigError, match=r"mixtral-8x7b need 87\.\d GiB.*model\.weights=int8"):
        check_weights(whole, free, "NVIDIA H100 80GB HBM3", "mixtral-8x7b")


def test_each_thread_that_fetches_holds_one_matrix_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the 8-bit ones: however many layers there are."""
    alive: set[str] = set()
    most = 0

    class Watched(RandomWeights):
        def get(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
            nonlocal most
            tensor = super().get(name, shape)
            if is_quantised(name):
                alive.add(name)
                most = max(most, len(alive))
                weakref.finalize(tensor, alive.discard, name)
            return tensor

    config: ModelConfig = replace(SMALL, n_layers=3)
    with Tensors(config, Watched(0), torch.float32, kind="int8") as tensors:
        for name in tensor_shapes(config):
            tensors.matrix(name)
        threads = tensors._n_threads
    assert 0 < most <= threads + 1
    assert not alive


# What isn't served


@pytest.mark.parametrize("kind", ["int4", "fp16", ""])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.weights='{kind}'.*int8, fp8, or null"):
        EngineConfig(weights=kind)
    with pytest.raises(ModelError, match=rf"weights='{kind}' isn't supported; available: int8, fp8"):
        load_model("tiny", kind=kind)
    with pytest.raises(ModelError, match=f"'{kind}'"):
        Tensors(SMALL, RandomWeights(0), torch.float32, kind=kind)


def test_the_kinds_are_those_that_may_be_set() -> None:
    assert tuple(KINDS) == WEIGHTS


def test_fp8_on_the_cpu_is_refused() -> None:
    with pytest.raises(ModelError, match=r"weights=fp8 run on a GPU only.*int8"):
        load_model("tiny", kind="fp8")


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint8])
@pytest.mark.parametrize("kind", [None, "int8"])
def test_checkpoints_that_are_quantised_already_are_refused(
    tmp_path: Path, dtype: torch.dtype, kind: str | None
) -> None:
    save_random(SMALL, 3, torch.float32, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.ones(tensors[name].shape).to(dtype)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"{name}.*quantised weights aren't supported"):
        load_model(str(tmp_path), kind=kind)
