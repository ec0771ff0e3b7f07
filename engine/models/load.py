"""From a name or a path to a model."""

from __future__ import annotations

from pathlib import Path

import torch

from engine import hub
from engine.models.config import ModelConfig, ModelError, config_from_hf, with_context
from engine.models.llama import Llama
from engine.models.shapes import SHAPES, named_shape
from engine.models.weights import RandomWeights, SafetensorsFolder, build, dtype_named, read_json

WANTED = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
"""Files of a model on the hub that are of use here."""


def load_model(
    name_or_path: str,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    *,
    vocab_size: int | None = None,
    max_context: int | None = None,
) -> Llama:
    """Loads a model of the Llama family.

    name_or_path: a named shape (`tiny`, `llama-110m`, `llama-7b`: random weights drawn from `seed`, the same for the
        same seed), a Hugging Face folder, or a hub name (`owner/model`).
    dtype: float32, bfloat16 or float64.
    vocab_size: of a named shape, instead of its own.
    max_context: longest prompt + output, tokens, instead of the model's own.
    Raises ModelError naming the file, tensor or field.
    """
    wanted = dtype_named(dtype)
    if name_or_path in SHAPES:
        shape = named_shape(name_or_path, vocab_size)
        if max_context is not None:
            shape = with_context(shape, max_context)
        return build(shape, RandomWeights(seed), wanted)
    folder = model_folder(name_or_path)
    return build(read_config(folder, max_context), SafetensorsFolder(folder), wanted)


def model_folder(name_or_path: str) -> Path:
    """The folder itself, or where the hub's copy was put. Raises ModelError for what is neither."""
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise ModelError(f"{folder}: a model is a folder with config.json and *.safetensors; this is a file")
    if folder.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") != 1:
        named = ", ".join(SHAPES)
        raise ModelError(
            f"no model {name_or_path!r}: no such folder, and neither a named shape ({named}) nor owner/model"
        )
    try:
        return hub.fetch(name_or_path, WANTED)
    except hub.HubError as error:
        raise ModelError(f"no model {name_or_path}: {error}") from error


def read_config(folder: Path, max_context: int | None = None) -> ModelConfig:
    """Reads `config.json` and, where there is one, `generation_config.json`."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{path}: this file is missing")
    generation = folder / "generation_config.json"
    try:
        return config_from_hf(read_json(path), read_json(generation) if generation.is_file() else None, max_context)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
