"""A LLaVA's folder: weights under each of the names that are in use, configs that say what isn't served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from engine.models.config import ModelError, config_from_hf
from engine.models.load import load_model, read_config
from engine.models.preprocess import picture_reader
from engine.pictures import PLACE
from engine.request import SamplingParams
from tests.engine.pictures.conftest import draw, engine_of, file_of, words

STYLES = {
    "published": {
        "vision_tower.": "vision_tower.vision_model.",
    },
    "of the model's own parts": {
        "language_model.model.": "model.language_model.",
        "language_model.lm_head.": "lm_head.",
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
    },
}
"""Beginnings of names, from those that `save_pretrained` of transformers 5 writes."""


@pytest.mark.parametrize("style", STYLES)
def test_weights_are_found_under_each_style_of_names(saved_llava: tuple[Any, Path], tmp_path: Path, style: str) -> None:
    folder = saved_llava[1]
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    renamed = {}
    for name, tensor in tensors.items():
        own, there = next(((a, b) for a, b in STYLES[style].items() if name.startswith(a)), ("", ""))
        renamed[there + name[len(own) :]] = tensor
    assert renamed.keys() != tensors.keys()
    shutil.copy(folder / "config.json", tmp_path)
    safetensors.torch.save_file(renamed, tmp_path / "model.safetensors")
    params, prompt = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True, logprobs=0), [5, PLACE, *words(3, 1)]
    answers = []
    for one in (folder, tmp_path):
        engine = engine_of(one)
        [request] = engine.add(prompt, params, images=[file_of(draw(0))])
        engine.run()
        answers.append((request.output, [entry.logprob for entry in request.logprobs]))
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] == pytest.approx(answers[1][1], abs=1e-12)


@pytest.mark.parametrize("missing", ["vision_tower.embeddings.class_embedding", "multi_modal_projector.linear_2.bias"])
def test_a_missing_weight_is_named(saved_llava: tuple[Any, Path], tmp_path: Path, missing: str) -> None:
    tensors = safetensors.torch.load_file(saved_llava[1] / "model.safetensors")
    del tensors[missing]
    shutil.copy(saved_llava[1] / "config.json", tmp_path)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=missing.rsplit(".", 2)[1]):
        load_model(str(tmp_path), "float32")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"vision_feature_layer": [-2, -5]}, "vision_feature_layer"),
        ({"vision_feature_layer": -9}, "vision_feature_layer=-9"),
        ({"vision_feature_select_strategy": "some"}, "default or full"),
        ({"projector_hidden_act": "relu"}, "'relu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "clip_vision_model"),
        ({"text_config": {"model_type": "gemma2"}}, "gemma2"),
        ({"text_config": {"model_type": "mistral"}}, "is missing"),
    ],
)
def test_what_isnt_served_is_named(saved_llava: tuple[Any, Path], changes: dict[str, Any], says: str) -> None:
    config = json.loads((saved_llava[1] / "config.json").read_text())
    with pytest.raises(ModelError, match=says):
        config_from_hf({**config, **changes})


def test_published_configs_may_leave_out_the_sizes_of_the_7b_model() -> None:
    """As llava-hf/llava-1.5-7b-hf does."""
    text = {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32064}
    vision = {"hidden_size": 1024, "image_size": 336, "num_hidden_layers": 24, "patch_size": 14}
    config = config_from_hf({"model_type": "llava", "text_config": text, "vision_config": vision})
    assert (config.hidden_size, config.intermediate_size, config.n_layers) == (4096, 11008, 32)
    assert config.vision is not None
    assert (config.vision.n_tokens, config.vision.n_run) == (576, 23)


def test_the_folders_own_processor_makes_pictures_ready(saved_llava: tuple[Any, Path], tmp_path: Path) -> None:
    shutil.copy(saved_llava[1] / "config.json", tmp_path)
    settings = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "do_normalize": False,
        "crop_size": {"height": 28, "width": 28},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    config = read_config(tmp_path)
    pixels = torch.from_numpy(picture_reader(config, tmp_path).read(draw(0)).pixels)
    assert pixels.min() >= 0, "not normalised, as the file says"
    settings["crop_size"] = {"height": 14, "width": 14}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="the model takes 28 a side"):
        picture_reader(config, tmp_path)
