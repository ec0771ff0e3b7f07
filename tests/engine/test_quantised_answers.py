"""An engine whose weights are in 8 bits answers as the model of the dequantised weights. Truth is transformers' greedy
search in float64 with every quantised weight replaced by scale * stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import EngineConfig, SamplingParams, make_engine
from engine.models.load import find_model, load_model
from engine.models.quantise import dequantised, is_quantised, quantise
from engine.models.shapes import SHAPES
from engine.models.weights import RandomWeights, save_random, tensor_shapes
from tests.engine.gpu_twins import cpu_executor, engine

STORIES = [
    "Once upon a time, there was a little girl named Lily. She loved to",
    "Once upon a time, there was a little girl named Lily. She had a",
    "Once upon a time, there was a big dog. The dog",
    "Tom and Sam",
]
NEW = 24


def dequantised_model(folder: str, config: Any) -> Any:
    # Its grouped product of experts has no float64.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, experts_implementation="eager")
    changed = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_quantised(name):
                parameter.copy_(dequantised(quantise(parameter.float(), "int8"), torch.float64))
                changed += 1
    assert changed >= 6 * config.n_layers
    return model


@pytest.mark.parametrize("cache", ["radix", "none"])
def test_greedy_tokens_are_those_of_transformers_on_the_dequantised_weights(models_dir: Path, cache: str) -> None:
    folder = str(models_dir / "stories260k")
    theirs = dequantised_model(folder, find_model(folder, 0)[0])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = []
    for story in STORIES:
        ids = tokenizer(story, return_tensors="pt").input_ids
        out = theirs.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
        expected.append(out[0, ids.shape[1] :].tolist())
    served = make_engine(
        EngineConfig(model=folder, dtype="float64", weights="int8", device="cpu", pool_tokens=1024, cache=cache)
    )
    answered = served.generate(STORIES, SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True))
    assert [request.output for (request,) in answered] == expected


@pytest.mark.parametrize("shape", ["tiny", "mixtral-tiny"])
def test_an_untied_head_grouped_queries_and_experts_are_answered_as_by_transformers(tmp_path: Path, shape: str) -> None:
    config = replace(SHAPES[shape], tied_embeddings=False, max_position_embeddings=256, max_context=256)
    save_random(config, 5, torch.float32, tmp_path)
    theirs = dequantised_model(str(tmp_path), config)
    prompt = torch.randint(3, 512, (1, 40), generator=torch.Generator().manual_seed(1))
    out = theirs.generate(prompt, max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)

    served = engine(cpu_executor(load_model(str(tmp_path), "float64", kind="int8")))
    [[request]] = served.generate([prompt[0].tolist()], SamplingParams(max_tokens=NEW, temperature=0, ignore_eos=True))
    assert request.output == out[0, 40:].tolist()


def test_8_bits_make_a_model_that_isnt_the_one_in_16() -> None:
    """Or the tests above would show nothing."""
    name = "model.layers.0.mlp.up_proj.weight"
    weight = RandomWeights(0).get(name, tensor_shapes(SHAPES["tiny"])[name])
    assert not torch.equal(dequantised(quantise(weight, "int8"), torch.float32).bfloat16(), weight.bfloat16())
