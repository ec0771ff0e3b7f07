"""Mixtral: experts by token, files of either layout, and the answers of transformers through the engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine import Engine, EngineConfig, SamplingParams
from engine.cost import PrefillCost
from engine.device import gpu_problem
from engine.executor.cpu import CpuExecutor
from engine.kernels.cpu.linear import Linear
from engine.kernels.cpu.moe import moe, moe_reference
from engine.models import ModelError, load_model
from engine.models.config import config_from_hf
from engine.models.families import family_named
from engine.models.llama import SwiGLU
from engine.models.mixtral import Mixtral, SparseMoE, route
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights, save_random, tensor_shapes
from tests.engine.gpu_twins import prompt

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "sliding_window": 17,
}
ONE_LAYER = replace(SHAPES["mixtral-tiny"], n_layers=1)
AT = "model.layers.0.block_sparse_moe"
NEW = 16
SHARED = prompt(20, seed=1)
PROMPTS = [SHARED + prompt(n, seed=n + 2) for n in (3, 9, 1)] + [prompt(30, seed=3), prompt(1, seed=4), SHARED]


@pytest.fixture(scope="module")
def theirs() -> Any:
    torch.manual_seed(5)
    config = transformers.MixtralConfig(**SIZES)
    config._experts_implementation = "eager"  # its grouped product has no float64
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms begin as ones, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double()


@pytest.fixture(scope="module")
def folder(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mixtral")
    theirs.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def truth(theirs: Any) -> list[list[int]]:
    found = []
    for tokens in PROMPTS:
        out = theirs.generate(
            torch.tensor([tokens]), max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        found.append(out[0, len(tokens) :].tolist())
    return found


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlapped"])
@pytest.mark.parametrize(
    "config",
    [
        {"cache": "none"},
        {},
        {"cache": "flat"},
        {"page_size": 4, "max_batch_tokens": 7, "max_running": 4},
        {"pool": 80, "schedule": "fcfs", "eviction": "random"},
        {"pool": 80, "predicted_output": 1},
    ],
    ids=["cache off", "radix", "flat", "pages of 4, chunks of 7", "a pool that evicts", "a pool that preempts"],
)
def test_greedy_tokens_are_those_of_transformers(
    folder: Path, truth: list[list[int]], config: dict[str, Any], overlap: bool
) -> None:
    config = {"pool": 1024, "page_size": 1, "predicted_output": NEW, **config}
    pool, predicted, page_size = config.pop("pool"), config.pop("predicted_output"), config["page_size"]
    executor = CpuExecutor(load_model(str(folder), "float64"), n_pages=pool // page_size, page_size=page_size)
    engine = Engine(executor, None, EngineConfig(**config, overlap=overlap))
    params = SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True)
    for warmth in ("cold", "warm"):
        requests = [engine.add(tokens, params, predicted_output=predicted)[0] for tokens in PROMPTS]
        while engine.has_work:
            engine.step()
            engine.check()
        assert [request.output for request in requests] == truth, warmth
    assert (engine.metrics.evicted_tokens > 0) == (pool == 80)
    assert (engine.metrics.preemptions > 0) == (predicted == 1)


def experts_of(n: int, hidden: int, inner: int, dtype: torch.dtype, *, packed: bool | None = None) -> list[SwiGLU]:
    generator = torch.Generator().manual_seed(n)

    def linear(outputs: int, inputs: int) -> Linear:
        return Linear(torch.randn(outputs, inputs, generator=generator).to(dtype) * inputs**-0.5, packed=packed)

    return [SwiGLU(linear(inner, hidden), linear(inner, hidden), linear(hidden, inner)) for _ in range(n)]


@settings(max_examples=40, deadline=None)
@given(
    n_tokens=st.integers(0, 40),
    n_experts=st.integers(1, 9),
    k=st.integers(1, 4),
    skew=st.floats(0.0, 8.0),
    seed=st.integers(0, 1000),
)
def test_grouped_experts_equal_the_naive_sum(n_tokens: int, n_experts: int, k: int, skew: float, seed: int) -> None:
    """Skewed routers leave some experts empty and fill others."""
    k = min(k, n_experts)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_tokens, n_experts, generator=generator) - skew * torch.arange(n_experts)
    routing = route(logits, k)
    h = torch.randn(n_tokens, 24, generator=generator, dtype=torch.float64)
    experts = experts_of(n_experts, 24, 40, torch.float64)
    found = moe(h, experts, routing.chosen, routing.shares)
    assert found.shape == h.shape
    assert torch.allclose(found, moe_reference(h, experts, routing.chosen, routing.shares), atol=1e-12)


@pytest.mark.parametrize("expert", range(4))
def test_one_expert_may_take_every_token_and_leave_the_others_none(expert: int) -> None:
    experts = experts_of(4, 24, 40, torch.float64)
    h = torch.randn(37, 24, dtype=torch.float64)
    found = moe(h, experts, torch.full((37, 1), expert), torch.ones(37, 1))
    assert torch.allclose(found, experts[expert](h), atol=1e-12)


def test_an_expert_without_tokens_is_not_run() -> None:
    ran: list[tuple[int, int]] = []

    def expert(i: int) -> Callable[[Tensor], Tensor]:
        return lambda h: ran.append((i, len(h))) or h

    h = torch.randn(3, 8)
    moe(h, [expert(i) for i in range(4)], torch.tensor([[3, 1], [1, 3], [1, 3]]), torch.full((3, 2), 0.5))
    assert ran == [(1, 3), (3, 3)]


def test_a_token_gets_the_same_whatever_is_beside_it() -> None:
    """Bit for bit but for the products, whose order of sums is the CPU library's: in float64 that is the last bits."""
    block = SparseMoE(torch.randn(6, 24, dtype=torch.float64), experts_of(6, 24, 40, torch.float64), 3)
    h = torch.randn(33, 24, dtype=torch.float64)
    together = block.plus(h, h)
    for at in (0, 7, 32):
        alone = block.plus(h[at : at + 1], h[at : at + 1])
        assert torch.allclose(alone[0], together[at], atol=1e-12, rtol=0)


def test_the_router_is_that_of_transformers(theirs: Any) -> None:
    gate = theirs.model.layers[0].mlp.gate
    h = torch.randn(50, 48, dtype=torch.float64)
    with torch.no_grad():
        logits, shares, chosen = gate(h)
    routing = route(logits, 2)
    assert torch.equal(routing.chosen, chosen)
    assert torch.equal(routing.shares, shares)
    assert routing.shares.dtype == torch.float32
    assert torch.allclose(routing.shares.sum(1), torch.ones(50))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("packed", [None, False])
def test_narrow_types_are_near_the_truth(dtype: torch.dtype, packed: bool | None) -> None:
    h = torch.randn(70, 32, generator=torch.Generator().manual_seed(1))
    routing = route(torch.randn(70, 4, generator=torch.Generator().manual_seed(2)), 2)
    truth = moe_reference(h.double(), experts_of(4, 32, 64, torch.float64), *routing)
    found = moe(h.to(dtype), experts_of(4, 32, 64, dtype, packed=packed), *routing)
    assert found.dtype == dtype
    assert (found.double() - truth).norm() < 4 * torch.finfo(dtype).eps * truth.norm()


def test_joined_experts_are_read_like_single_ones(theirs: Any, folder: Path, tmp_path: Path) -> None:
    """transformers 5 saves the hub's names, or the joined tensors that it holds in memory."""
    theirs.save_pretrained(tmp_path, save_original_format=False)
    assert "model.layers.0.mlp.experts.gate_up_proj" in load_file(tmp_path / "model.safetensors")
    assert f"{AT}.experts.0.w1.weight" in load_file(folder / "model.safetensors")
    one, joined = load_model(str(folder), "float64"), load_model(str(tmp_path), "float64")
    for mine, other in zip(one.blocks, joined.blocks, strict=True):
        assert isinstance(mine.mlp, SparseMoE)
        assert isinstance(other.mlp, SparseMoE)
        assert torch.equal(mine.mlp.router, other.mlp.router)
        for a, b in zip(mine.mlp.experts, other.mlp.experts, strict=True):
            assert all(torch.equal(x.weight, y.weight) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("mlp.experts.gate_up_proj", None, r"'model.layers.0.mlp.experts.gate_up_proj' is missing"),
        ("mlp.experts.down_proj", torch.zeros(5, 48, 81), r"down_proj' has shape \[5, 48, 81\].*\[5, 48, 80\]"),
        ("mlp.gate.weight", torch.zeros(4, 48), r"mlp.gate.weight' has shape \[4, 48\].*\[5, 48\]"),
    ],
)
def test_a_joined_tensor_that_is_wrong_is_named(
    theirs: Any, tmp_path: Path, name: str, tensor: Tensor | None, says: str
) -> None:
    theirs.save_pretrained(tmp_path, save_original_format=False)
    change(tmp_path, f"model.layers.0.{name}", tensor)
    with pytest.raises(ModelError, match=says):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("experts.3.w2.weight", None, r"'model.layers.0.block_sparse_moe.experts.3.w2.weight' is missing"),
        ("gate.weight", None, r"'model.layers.0.block_sparse_moe.gate.weight' is missing"),
        ("experts.7.w1.weight", torch.zeros(96, 128), r"experts.7.w1.weight' has shape \[96, 128\].*\[128, 96\]"),
        ("experts.0.w3.weight", torch.zeros(128, 96, dtype=torch.int8), "experts.0.w3.weight.*quantised"),
    ],
)
def test_an_expert_that_is_wrong_is_named(tmp_path: Path, name: str, tensor: Tensor | None, says: str) -> None:
    save_random(ONE_LAYER, 0, torch.float32, tmp_path)
    change(tmp_path, f"{AT}.{name}", tensor)
    with pytest.raises(ModelError, match=says):
        load_model(str(tmp_path))


def change(folder: Path, name: str, tensor: Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file({**tensors, **({} if tensor is None else {name: tensor})}, folder / "model.safetensors")


def test_an_export_is_read_back_by_both(tmp_path: Path) -> None:
    save_random(ONE_LAYER, 6, torch.float32, tmp_path)
    ours = load_model(str(tmp_path))
    assert ours.config == ONE_LAYER
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    up = other.model.layers[0].mlp.experts.gate_up_proj[5, 128:]
    assert torch.equal(up, RandomWeights(6).get(f"{AT}.experts.5.w3.weight", (128, 96)))
    named = load_model("mixtral-tiny", seed=6).blocks[0].mlp
    saved = ours.blocks[0].mlp
    assert isinstance(named, SparseMoE)
    assert isinstance(saved, SparseMoE)
    x = torch.randn(3, 96)
    assert torch.equal(named.experts[5](x), saved.experts[5](x))


def test_named_shapes_have_the_sizes_they_promise() -> None:
    def parameters(name: str) -> int:
        return sum(torch.Size(shape).numel() for shape in tensor_shapes(SHAPES[name]).values())

    assert parameters("mixtral-8x7b") == 46_702_792_704  # as published: 47B, of which a token uses 13B
    outside = 2 * 32000 * 4096
    assert 12.8e9 < SHAPES["mixtral-8x7b"].n_layer_parameters + outside < 13e9
    assert parameters("mixtral-tiny") < 1_500_000
    small, llama = SHAPES["mixtral-small"], SHAPES["llama-110m"]
    assert small.n_layer_parameters == pytest.approx(llama.n_layer_parameters, rel=0.01)


def test_a_token_costs_what_it_is_multiplied_with(theirs: Any) -> None:
    config = config_from_hf(theirs.config.to_dict())
    experts, layers = 0, 0
    for name, weight in theirs.named_parameters():
        if ".experts." in name:
            experts += weight.numel()
        elif ".layers." in name and weight.ndim == 2:
            layers += weight.numel()
    assert config.n_layer_parameters == layers + experts * 2 // 5
    assert PrefillCost.of(config, flops=1.0).per_token == 2 * (layers + experts * 2 // 5)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_experts_per_tok": 6}, "n_experts_per_token=6 of n_experts=5"),
        ({"num_experts_per_tok": 0}, "n_experts_per_token=0 of n_experts=5"),
        ({"num_local_experts": None}, "'num_local_experts' is missing"),
        ({"num_experts_per_tok": None}, "'num_experts_per_tok' is missing"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        config_from_hf({**SIZES, "model_type": "mixtral", **fields})


def test_configs_read_as_transformers_reads_them() -> None:
    """The hub's has no head_dim, a null window, and `rope_theta` beside the rest."""
    published = {
        **{"model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_act": "silu", "vocab_size": 32000},
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2, "rms_norm_eps": 1e-05},
        **{"max_position_embeddings": 32768, "rope_theta": 1000000.0, "sliding_window": None, "bos_token_id": 1},
        **{"eos_token_id": 2, "tie_word_embeddings": False, "router_aux_loss_coef": 0.02},
    }
    assert config_from_hf(published) == SHAPES["mixtral-8x7b"]
    least = {**SIZES, "model_type": "mixtral"}
    defaults = transformers.MixtralConfig(**SIZES)
    read = config_from_hf(least)
    assert read.rope.theta == defaults.rope_parameters["rope_theta"]
    assert read.norm_eps == defaults.rms_norm_eps
    assert read.windows == (17, 17, 17)
    assert json.loads(json.dumps(family_named("mixtral").write(read))) == {
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
    }


def test_a_gpu_takes_it_and_refuses_a_family_that_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = EngineConfig(model="mixtral-8x7b", dtype="bfloat16", deterministic=True)
    assert gpu_problem(asked, SHAPES["mixtral-8x7b"], "H100", 90) is None
    monkeypatch.setattr(Mixtral, "gpu_problem", lambda _, deterministic: f"deterministic={deterministic}: use a CPU")
    assert gpu_problem(asked, SHAPES["mixtral-8x7b"], "H100", 90) == "deterministic=True: use a CPU"
