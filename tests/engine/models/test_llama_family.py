"""Logits of every family against transformers, on small random models, however the tokens are cut into steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from engine.executor.base import Batch, PrefixGroup, Row
from engine.executor.cpu import CpuExecutor
from engine.models import ModelError, load_model
from engine.models.config import config_from_hf
from engine.request import Request, SamplingParams

SMALL = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
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
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.3, 1.7],
    "long_factor": [1.0, 2.0, 4.0, 7.0],
    "factor": 3.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama2": ("LlamaConfig", {}),
    "llama2-multi-head": ("LlamaConfig", {"num_key_value_heads": 6}),
    "llama-tied-biases": ("LlamaConfig", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("LlamaConfig", {"head_dim": 16}),
    "llama3": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "linear": ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}}),
    "dynamic": ("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}}),
    "yarn": ("LlamaConfig", {"rope_parameters": YARN}),
    "yarn-mscale": (
        "Qwen2Config",
        {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.2, "beta_fast": 16}},
    ),
    "yarn-untruncated": ("LlamaConfig", {"rope_parameters": {**YARN, "truncate": False}}),
    "longrope": ("LlamaConfig", {"rope_parameters": LONGROPE}),
    "mistral": ("MistralConfig", {"sliding_window": None}),
    "mistral-window": ("MistralConfig", {"sliding_window": 13}),
    "mistral-wide-window": ("MistralConfig", {"sliding_window": 4096}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2-window": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1}),
    "qwen3": ("Qwen3Config", {"head_dim": 16}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "mixtral-one-window": ("MixtralConfig", {"num_local_experts": 3, "num_experts_per_tok": 1, "sliding_window": 13}),
    "mixtral-all": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 4}),
    "qwen3-biases-window": (
        "Qwen3Config",
        {
            "head_dim": 16,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 9,
            "max_window_layers": 2,
        },
    ),
}


def reference(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    name, own = FAMILIES[family]
    config = getattr(transformers, name)(**{**SMALL, **own, **changes})
    config._experts_implementation = "eager"  # its grouped product has no float64
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases begin as ones and zeros, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    made: dict[str, tuple[Any, Path]] = {}

    def save(family: str) -> tuple[Any, Path]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            model = reference(family)
            model.save_pretrained(folder)
            made[family] = model, folder
        return made[family]

    return save


def expected_logits(model: Any, tokens: Sequence[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(tokens)])).logits[0]


class Driver:
    """Steps requests through an executor by hand, each with pages of its own scattered over the pool."""

    def __init__(self, executor: CpuExecutor, seed: int = 0) -> None:
        self.executor = executor
        self.free = np.random.default_rng(seed).permutation(executor.n_pages).astype(np.int32).tolist()
        self.step = 0

    def request(self, tokens: Sequence[int], shares: tuple[Request, int] | None = None) -> Request:
        """`shares`: the first n tokens live in the pages of another request (n a multiple of the page size)."""
        size = self.executor.page_size
        key = np.array(tokens, np.int64)
        pages = np.array([self.free.pop() for _ in range(-(-len(key) // size))], np.int32)
        if shares is not None:
            pages[: shares[1] // size] = shares[0].pages[: shares[1] // size]
        params = SamplingParams(max_tokens=0, prompt_logprobs=0)
        return Request(id=self.step, key=key, params=params, tokens=key, n_tokens=len(key), pages=pages)

    def logits(
        self, rows: Sequence[tuple[Request, int, int]], groups: Sequence[PrefixGroup] = ()
    ) -> list[torch.Tensor]:
        """Logits of every position [start, end) of each row, the last position of a prompt included."""
        batch = Batch(self.step, tuple(Row(r, a, b - a, sample=b == r.n_tokens) for r, a, b in rows), tuple(groups))
        self.step += 1
        pending = self.executor.launch(batch)
        return [pending.logits[a:b] for a, b in zip(pending.first_logit, pending.first_logit[1:])]


def prompt(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, SMALL["vocab_size"], n).tolist()


def assert_same(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert (found.double() - expected.double()).abs().max().item() <= tolerance


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("page_size", "chunks"), [(1, (50,)), (4, (7, 20, 1, 22)), (16, (16, 30, 1, 1, 1, 1)), (1, (1,) * 30)]
)
def test_logits_are_those_of_transformers(
    saved: Callable[[str], tuple[Any, Path]], family: str, page_size: int, chunks: tuple[int, ...]
) -> None:
    model, folder = saved(family)
    n = sum(chunks)
    if family == "longrope":
        n, chunks = 30, (30,) if len(chunks) == 1 else (13, 1, 1, 15)  # within the context of the pretraining
    tokens = prompt(n, seed=1)
    driver = Driver(CpuExecutor(load_model(str(folder)), n_pages=40 // page_size + 60, page_size=page_size))
    request = driver.request(tokens)
    found, start = [], 0
    for chunk in chunks:
        found += driver.logits([(request, start, start + chunk)])
        start += chunk
    expected = expected_logits(model, tokens)
    assert_same(torch.cat(found), expected[-len(torch.cat(found)) :])
    assert len(torch.cat(found)) >= n - len(chunks)


@pytest.mark.parametrize("family", ["llama2", "llama3", "mistral-window", "qwen2", "qwen3", "mixtral"])
@pytest.mark.parametrize("page_size", [1, 4, 16])
def test_rows_read_pages_that_others_write_in_the_same_step(
    saved: Callable[[str], tuple[Any, Path]], family: str, page_size: int
) -> None:
    model, folder = saved(family)
    driver = Driver(CpuExecutor(load_model(str(folder)), n_pages=400 // page_size, page_size=page_size))
    shared = prompt(32, seed=2)
    prompts = [shared + prompt(n, seed=3 + n) for n in (5, 9, 1, 30)] + [prompt(21, seed=4), prompt(2, seed=5)]
    first = driver.request(prompts[0])
    requests = [
        first,
        *(driver.request(p, shares=(first, 32)) for p in prompts[1:4]),
        *map(driver.request, prompts[4:]),
    ]
    rows = [(requests[5], 0, 2), (requests[1], 32, 41), (first, 0, 37), (requests[3], 32, 62), (requests[2], 32, 33)]
    rows.append((requests[4], 0, 21))
    for groups in ([], [PrefixGroup((1, 3, 4), 32)]):
        for (request, a, b), found in zip(rows, driver.logits(rows, groups), strict=True):
            assert_same(found, expected_logits(model, request.key)[a:b][-len(found) :])


@pytest.mark.parametrize("family", ["llama2", "mistral-window", "qwen3"])
def test_decodes_of_many_rows_share_a_prefix(saved: Callable[[str], tuple[Any, Path]], family: str) -> None:
    model, folder = saved(family)
    driver = Driver(CpuExecutor(load_model(str(folder)), n_pages=600, page_size=1))
    shared = prompt(40, seed=6)
    prompts = [shared + prompt(n, seed=n) for n in (3, 4, 17, 30, 9)]
    first = driver.request(prompts[0])
    requests = [first, *(driver.request(p, shares=(first, 40)) for p in prompts[1:])]
    lone = driver.request(prompt(25, seed=8))
    driver.logits([(first, 0, 42), *((r, 40, r.n_tokens - 1) for r in requests[1:]), (lone, 0, 10)])
    rows = [(lone, 10, 25), *((r, r.n_tokens - 1, r.n_tokens) for r in requests)]
    for groups in ([], [PrefixGroup((1, 3, 5), 40), PrefixGroup((2, 4), 40)]):
        for (request, a, b), found in zip(rows, driver.logits(rows, groups), strict=True):
            assert_same(found, expected_logits(model, request.key)[a:b][-len(found) :])


@pytest.mark.parametrize("family", ["llama3", "qwen3", "mistral-window", "mixtral"])
def test_float64_agrees_closely(tmp_path: Path, family: str) -> None:
    model = reference(family, torch.float64)
    model.save_pretrained(tmp_path)
    driver = Driver(CpuExecutor(load_model(str(tmp_path), dtype="float64"), n_pages=60, page_size=1))
    tokens = prompt(48, seed=9)
    request = driver.request(tokens)
    found = driver.logits([(request, 0, 31)]) + driver.logits([(request, 31, 48)])
    # transformers takes its norms in float32 even then
    assert_same(torch.cat(found), expected_logits(model, tokens), tolerance=2e-5)


def test_float64_does_not_depend_on_chunks_pages_or_batch(tmp_path: Path) -> None:
    reference("qwen3").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype="float64")
    tokens, results = prompt(60, seed=10), []
    for page_size, chunks in ((1, (60,)), (4, (1, 11, 48)), (16, (20,) * 3)):
        driver = Driver(CpuExecutor(model, n_pages=200, page_size=page_size))
        request, other = driver.request(tokens), driver.request(prompt(60, seed=11))
        start = 0
        for chunk in chunks:
            last = driver.logits([(other, start, start + chunk), (request, start, start + chunk)])[1]
            start += chunk
        results.append(last[-1])
    for result in results[1:]:
        assert_same(result, results[0], tolerance=1e-10)


def test_bfloat16_is_as_close_to_the_truth_as_transformers(tmp_path: Path) -> None:
    model = reference("llama3")
    model.save_pretrained(tmp_path)
    tokens = prompt(64, seed=12)
    truth = expected_logits(model, tokens)
    theirs = (expected_logits(model.to(torch.bfloat16), tokens) - truth).abs().mean()
    driver = Driver(CpuExecutor(load_model(str(tmp_path), dtype="bfloat16"), n_pages=80, page_size=1))
    ours = (driver.logits([(driver.request(tokens), 0, 64)])[0] - truth).abs().mean()
    assert ours < 1.5 * theirs


def test_longer_contexts_stretch_the_rotary_embedding_once_for_all(saved: Callable[[str], tuple[Any, Path]]) -> None:
    tokens = prompt(90, seed=13)
    model, folder = saved("longrope")
    assert load_model(str(folder)).config.max_context == 32
    driver = Driver(CpuExecutor(load_model(str(folder), max_context=96), n_pages=96, page_size=1))
    assert_same(driver.logits([(driver.request(tokens), 0, 90)])[0], expected_logits(model, tokens))

    tokens = prompt(140, seed=14)
    model, folder = saved("dynamic")
    driver = Driver(CpuExecutor(load_model(str(folder), max_context=140), n_pages=140, page_size=1))
    assert_same(driver.logits([(driver.request(tokens), 0, 140)])[0], expected_logits(model, tokens))


@pytest.mark.parametrize("family", FAMILIES)
def test_old_configs_read_like_new_ones(family: str) -> None:
    name, own = FAMILIES[family]
    new = getattr(transformers, name)(**{**SMALL, **own}).to_dict()
    rope = dict(new["rope_parameters"])
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else {"type": rope.pop("rope_type"), **rope}
    assert config_from_hf(old) == config_from_hf(new)
    if family == "llama2":
        old["num_key_value_heads"] = None
        assert config_from_hf(old) == dataclasses.replace(config_from_hf(new), n_kv_heads=6)


def test_eos_ids_come_from_the_generation_config_first() -> None:
    config = {**SMALL, "model_type": "llama", "eos_token_id": 2, "bos_token_id": 1}
    assert config_from_hf(config).eos_token_ids == (2,)
    both = config_from_hf(config, {"eos_token_id": [5, 6]})
    assert (both.eos_token_ids, both.bos_token_id) == ((5, 6), 1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "mrope"}}, "mrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}}, "short_factor"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "three"}, "n_layers"),
        ({"num_key_value_heads": 4}, "key-value heads"),
        ({"model_type": "qwen2", "use_sliding_window": True, "layer_types": ["chunked_attention"] * 3}, "layer_types"),
    ],
)
def test_what_is_not_supported_is_named(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=named):
        config_from_hf({**SMALL, "model_type": "llama", **change})
