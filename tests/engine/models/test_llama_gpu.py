"""Logits of every family against transformers, with the kernels, however the tokens are cut into steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.executor.base import Batch, PrefixGroup, Row
from engine.kernels.tiles import current_gpu
from engine.models import ModelError, load_model
from engine.models.llama_gpu import LlamaGpu
from engine.models.load import load_gpu_model
from engine.models.quantise import dequantised, is_quantised, quantise
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights
from tests.engine.gpu_twins import DEVICE, Driver, cpu_executor, cuda_executor, prompt, twins

SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 96,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 24}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3, "num_attention_heads": 4, "head_dim": 40}),
    "llama-tied-biases": ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "yarn": ("LlamaConfig", {"rope_parameters": YARN, "num_key_value_heads": 2}),
    "mistral-window": ("MistralConfig", {"sliding_window": 13}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made: dict[str, tuple[Any, Path]] = {}

    def save(family: str) -> tuple[Any, Path]:
        if family not in made:
            name, own = FAMILIES[family]
            torch.manual_seed(7)
            config = getattr(transformers, name)(**{**SIZES, **own})
            config._experts_implementation = "eager"  # its grouped product has no float64
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
            with torch.no_grad():
                for parameter in model.parameters():  # norms and biases begin as ones and zeros, which hide mistakes
                    parameter.add_(torch.randn_like(parameter) * 0.1)
            path = tmp_path_factory.mktemp(family)
            model.save_pretrained(path)
            made[family] = model, path
        return made[family]

    return save


def load(path: Path, dtype: str = "float32", **settings: Any) -> LlamaGpu:
    return load_gpu_model(str(path), dtype, device=DEVICE, **settings)


def expected(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    """float64, but for norms, which transformers takes in float32."""
    with torch.no_grad():
        return model.double()(torch.tensor([list(tokens)])).logits[0]


def logits_in_steps(model: LlamaGpu, tokens: Sequence[int], cuts: Sequence[int], page_size: int) -> torch.Tensor:
    """Of every position but where a cut that isn't the last ends."""
    driver = Driver(cuda_executor(model, n_pages=-(-96 // page_size), page_size=page_size))
    request = driver.request(tokens, prompt_logprobs=0)
    found, start = [], 0
    for cut in cuts:
        found += driver.logits([(request, start, start + cut)])
        start += cut
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("page_size", "cuts"), [(1, (30,)), (16, (17, 1, 12))])
def test_logits_are_those_of_transformers(folder: Any, family: str, page_size: int, cuts: Sequence[int]) -> None:
    model, path = folder(family)
    tokens = prompt(30, seed=1)
    found = logits_in_steps(load(path), tokens, cuts, page_size)
    assert found.shape == (30, 128)
    assert (found.double() - expected(model, tokens)).abs().max() < 1e-4


def test_windows_and_shared_prefixes_in_one_batch(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers with a window read everything themselves, the others read the prefix once."""
    monkeypatch.setattr("engine.executor.gpu_attention.pays", lambda n, *_, **__: n > 1)
    model, path = folder("qwen2-window")
    driver = Driver(cuda_executor(load(path), n_pages=200))
    shared = prompt(36, seed=2)
    first = driver.request(shared + prompt(3, 1), prompt_logprobs=0)
    second = driver.request(shared + prompt(5, 2), shares=(first, 36), prompt_logprobs=0)
    driver.logits([(first, 0, 36)])
    found = driver.logits([(second, 36, 41), (first, 36, 39)], [PrefixGroup((0, 1), 36)])
    for ours, request in zip(found, (second, first), strict=True):
        assert (ours.double() - expected(model, request.key)[36:]).abs().max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_as_close_to_the_truth_as_transformers(folder: Any, dtype: str) -> None:
    model, path = folder("llama3")
    tokens = prompt(24, seed=3)
    truth = expected(model, tokens)
    with torch.no_grad():
        rounded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
        theirs = rounded(torch.tensor([tokens])).logits[0].double()
    found = logits_in_steps(load(path, dtype), tokens, (20, 4), 16)
    assert found.dtype == getattr(torch, dtype)
    assert (found.double() - truth).norm() < 1.2 * (theirs - truth).norm()


@pytest.mark.parametrize("family", ["llama-tied-biases", "mixtral"])
def test_deterministic_products_give_the_same_logits(folder: Any, family: str) -> None:
    model, path = folder(family)
    tokens = prompt(20, seed=4)
    found = logits_in_steps(load(path, deterministic=True), tokens, (19, 1), 1)
    assert (found.double() - expected(model, tokens)).abs().max() < 1e-4


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
@pytest.mark.parametrize("family", ["llama3", "llama-tied-biases", "mixtral"])
def test_logits_in_8_bits_are_those_of_transformers_on_the_dequantised_weights(
    folder: Any, family: str, kind: str, deterministic: bool
) -> None:
    if DEVICE.type == "cuda" and kind == "fp8" and current_gpu().capability < 89:
        pytest.skip("this GPU has no float8")
    model, path = folder(family)
    model = copy.deepcopy(model).double()
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_quantised(name) and not (tied and name == "lm_head.weight"):
                parameter.copy_(dequantised(quantise(parameter.float(), kind), torch.float64))
    tokens = prompt(20, seed=4)
    found = logits_in_steps(load(path, kind=kind, deterministic=deterministic), tokens, (19, 1), 1)
    assert (found.double() - expected(model, tokens)).abs().max() < 1e-4
    assert (found.double() - expected(folder(family)[0], tokens)).abs().max() > 1e-3  # 8 bits are told from 32


@pytest.mark.parametrize("kind", [None, "int8"])
def test_mixtral_gives_the_logits_of_the_cpu(kind: str | None) -> None:
    # Heads of 16 numbers are too small for the kernels.
    both = twins(replace(SHAPES["mixtral-tiny"], n_heads=3, n_kv_heads=1, head_dim=32, max_context=64), kind=kind)
    tokens = prompt(25, seed=5, vocab_size=512)
    request = Driver(cuda_executor(both.gpu)).request(tokens, prompt_logprobs=0)
    expected = cpu_executor(both.cpu).launch(Batch(0, (Row(request, 0, 25, sample=True),))).logits
    found = logits_in_steps(both.gpu, tokens, (16, 9), 1).cpu()
    assert (found - expected).norm() < 1e-4 * expected.norm()


def test_the_last_layer_answers_only_what_is_wanted(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, path = folder("qwen3")
    driver = Driver(cuda_executor(load(path), n_pages=200))
    seen: list[int] = []
    attention = "engine.executor.gpu_attention.StepAttention.attend"
    monkeypatch.setattr(attention, lambda *given: seen.append(len(given[-1])) or given[-1])
    a, b, c = (driver.request(prompt(12, seed)) for seed in range(3))
    scored = driver.request(prompt(9, 5), prompt_logprobs=0, prompt_logprobs_start=6)
    counts = [len(x) for x in driver.logits([(a, 0, 12), (b, 0, 5), (c, 11, 12), (scored, 0, 9)])]
    assert counts == [1, 0, 1, 4]
    assert seen == [12 + 5 + 1 + 9, 6]
    seen.clear()
    assert [len(x) for x in driver.logits([(b, 5, 6), (a, 3, 7)])] == [0, 0]
    assert seen == [5]  # K and V of the last layer are stored all the same, its queries go nowhere


def test_both_layouts_hold_the_same_weights(folder: Any) -> None:
    _, path = folder("llama-tied-biases")
    theirs, ours = load_model(str(path)), load(path)
    x = torch.randn(3, 64)
    for mine, block in zip(ours.blocks, theirs.blocks, strict=True):
        assert torch.allclose(mine.qkv(x.to(DEVICE)).cpu(), block.qkv(x), atol=1e-5)
        mixed = block.mlp(x)
        assert torch.allclose(mine.mlp(x.to(DEVICE)).cpu(), mixed, atol=1e-4)


def test_named_shapes_have_the_weights_of_their_seed() -> None:
    model = load_gpu_model("tiny", "float16", 3, device=DEVICE, max_context=64)
    name = "model.embed_tokens.weight"
    assert torch.equal(model.embedding.cpu(), RandomWeights(3).get(name, (512, 96)).half())
    assert (model.config.max_context, len(model.cos)) == (64, 64)
    with pytest.raises(ModelError, match=r"'float64'.*float16"):
        load_gpu_model("tiny", "float64", device=DEVICE)
    with pytest.raises(ModelError, match=r"'float16'.*float64"):
        load_model("tiny", "float16")
