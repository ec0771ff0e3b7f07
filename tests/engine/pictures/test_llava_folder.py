"""A LLaVA's folder: either style of tensor names, fields that aren't supported, its own image processor, 8 bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.models.config import ModelError
from engine.models.load import load_gpu_model, load_model, read_config
from engine.models.preprocess import picture_reader
from engine.request import SamplingParams
from tests.engine.gpu_twins import DEVICE
from tests.engine.pictures.conftest import SIZE, draw
from tests.engine.pictures.test_llava_parity import PROMPTS, engine_of, files_for

PUBLISHED = ("language_model.model.", "vision_tower.vision_model.", "language_model.lm_head.", "multi_modal_projector.")
RENAMED = ("model.language_model.", "model.vision_tower.vision_model.", "lm_head.", "model.multi_modal_projector.")
SHORT = ("model.language_model.", "model.vision_tower.", "lm_head.", "model.multi_modal_projector.")
SAVED = ("language_model.model.", "vision_tower.", "language_model.lm_head.", "multi_modal_projector.")
"""Beginnings of names: as on the hub, two of transformers 5, as it saves them."""


def parts(name: str) -> tuple[int, str]:
    """(which of the beginnings above, the rest of the name)"""
    for style in (PUBLISHED, RENAMED, SHORT, SAVED):
        for i, begin in enumerate(style):
            if name.startswith(begin):
                return i, name[len(begin) :]
    raise AssertionError(name)


@pytest.fixture
def folder(saved_llava: tuple[Any, Path], tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(saved_llava[1], tmp_path / "copy"))


def change(path: Path, **fields: Any) -> None:
    config = json.loads(path.read_text())
    for name, value in fields.items():
        at = config
        *outer, last = name.split("__")
        for part in outer:
            at = at[part]
        at[last] = value
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "style",
    [PUBLISHED, RENAMED, SHORT, SAVED],
    ids=["the hub's", "renamed", "renamed, short", "saved"],
)
def test_tensors_are_found_under_either_style_of_names(
    saved_llava: tuple[Any, Path], folder: Path, style: tuple[str, ...]
) -> None:
    tensors = load_file(folder / "model.safetensors")
    named = {}
    for name, tensor in tensors.items():
        i, rest = parts(name)
        named[style[i] + rest] = tensor
    assert len(named) == len(tensors)
    save_file(named, folder / "model.safetensors", {"format": "pt"})
    ours, theirs = load_model(str(folder), "float64"), load_model(str(saved_llava[1]), "float64")
    pixels = torch.ones(1, 3, SIZE, SIZE, dtype=torch.float64)
    assert ours.vision is not None
    assert theirs.vision is not None
    assert torch.allclose(ours.vision(pixels), theirs.vision(pixels), rtol=0, atol=1e-12)
    assert torch.equal(ours.embedding, theirs.embedding)
    x = torch.ones(1, 48, dtype=torch.float64)
    assert torch.allclose(ours.head(x), theirs.head(x), rtol=0, atol=1e-12)
    on_gpu = load_gpu_model(str(folder), "float32", device=DEVICE)
    assert on_gpu.vision is not None
    assert torch.allclose(on_gpu.vision(pixels.to(DEVICE)).cpu().double(), theirs.vision(pixels), atol=1e-3)


@pytest.mark.parametrize("missing", ["embeddings.class_embedding", "layers.0.mlp.fc1.bias", "linear_2.weight"])
def test_a_tensor_that_is_missing_is_named(folder: Path, missing: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(missing)}
    assert len(kept) == len(tensors) - 1
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"{missing}.* is missing"):
        load_model(str(folder), "float64")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vision_config__model_type", "siglip_vision_model"),
        ("vision_config__hidden_size", "32"),
        ("vision_config__num_attention_heads", 0),
        ("vision_config__num_attention_heads", 5),
        ("vision_config__patch_size", 29),
        ("vision_config__hidden_act", "relu"),
        ("vision_config__num_channels", 1),
        ("projector_hidden_act", "relu"),
        ("vision_feature_layer", [-2, -5]),
        ("vision_feature_layer", 9),
        ("vision_feature_select_strategy", "some"),
    ],
)
def test_a_field_that_is_not_supported_is_named(folder: Path, field: str, value: Any) -> None:
    change(folder / "config.json", **{field: value})
    with pytest.raises(ModelError, match=field.replace("__", r"\.") + "="):
        read_config(folder)


def test_the_folders_own_processor_is_honoured(folder: Path) -> None:
    config, image = read_config(folder), draw(1)
    plain = picture_reader(config, folder).read(image)
    settings = {
        **{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": SIZE}},
        **{"crop_size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1.0]},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    own = picture_reader(config, folder).read(image)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's
    shown = plain.pixels * np.array(std)[:, None, None] + np.array(mean)[:, None, None]
    expected = (shown - 0.5) / np.array([0.25, 0.5, 1.0])[:, None, None]
    assert np.abs(own.pixels - expected).max() < 1e-5
    assert own.digest != plain.digest


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"image_processor_type": "SiglipImageProcessor", "size": {"height": SIZE, "width": SIZE}},
            "Siglip.*CLIP",
        ),
        ({"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}, r"56, 56.*takes 28 a side"),
    ],
)
def test_a_processor_that_does_not_fit_the_eyes_is_refused(folder: Path, fields: dict[str, Any], told: str) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    with pytest.raises(ModelError, match=told):
        picture_reader(read_config(folder), folder)


def test_weights_in_8_bits_are_the_language_models_alone(saved_llava: tuple[Any, Path]) -> None:
    path = saved_llava[1]
    exact, stored = load_model(str(path), "float32"), load_model(str(path), "float32", kind="int8")
    assert exact.vision is not None
    assert stored.vision is not None
    pixels = torch.ones(1, 3, SIZE, SIZE)
    assert torch.allclose(exact.vision(pixels), stored.vision(pixels), rtol=0, atol=1e-4)
    assert torch.equal(exact.vision.first.weight, stored.vision.first.weight)
    x = torch.ones(1, 48)
    error = (exact.head(x) - stored.head(x)).abs().max() / exact.head(x).abs().max()
    assert 0 < error < 0.02
    engine, prompt = engine_of(path), PROMPTS["in the middle"]
    engine.executor.model = load_model(str(path), "float64", kind="int8")  # type: ignore[attr-defined]
    [request] = engine.add(prompt, SamplingParams(max_tokens=3, ignore_eos=True), images=files_for(prompt))
    while engine.has_work:
        engine.step()
    assert request.error is None
    assert len(request.output) == 3
