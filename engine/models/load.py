"""From a name or a path to a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine import hub
from engine.models.config import ModelConfig, ModelError, config_from_hf, with_context
from engine.models.families import family_named
from engine.models.llama import Llama
from engine.models.llava import load_vision
from engine.models.quantise import stored_dtype
from engine.models.shapes import SHAPES, named_shape
from engine.models.weights import (
    GPU_DTYPES,
    RandomWeights,
    SafetensorsFolder,
    Tensors,
    Weights,
    build,
    dtype_named,
    read_json,
)

if TYPE_CHECKING:
    from engine.models.llama_gpu import LlamaGpu

WANTED = (
    *("config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("*.safetensors", "*.safetensors.index.json"),
)
"""Files of a model on the hub that are of use here."""


def load_model(
    name_or_path: str,
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    *,
    kind: str | None = None,
    vocab_size: int | None = None,
    max_context: int | None = None,
) -> Llama:
    """Loads a model of one of the `engine.models.families`.

    name_or_path: a named shape (`tiny`, `llama-110m`, `llama-7b`: random weights drawn from `seed`, the same for the
        same seed), a Hugging Face folder, or a hub name (`owner/model`).
    dtype: float32, bfloat16 or float64.
    kind: int8, for projections that are quantised while they are loaded (`engine.models.quantise`); None: as dtype.
    vocab_size: of a named shape, instead of its own.
    max_context: longest prompt + output, tokens, instead of the model's own.
    Raises ModelError naming the file, tensor or field.
    """
    wanted = dtype_named(dtype)
    if kind is not None and stored_dtype(kind) != torch.int8:
        raise ModelError(f"weights={kind} run on a GPU only: on the CPU use int8, or null for the dtype's own")
    config, weights = find_model(name_or_path, seed, vocab_size=vocab_size, max_context=max_context)
    model = build(config, text_weights(config, weights), wanted, kind=kind)
    if config.vision is not None:
        model.vision = load_vision(config, weights.get, weights.has, wanted)
    return model


def load_gpu_model(
    name_or_path: str,
    dtype: str | torch.dtype = "bfloat16",
    seed: int = 0,
    *,
    device: torch.device,
    deterministic: bool = False,
    kind: str | None = None,
    vocab_size: int | None = None,
    max_context: int | None = None,
) -> LlamaGpu:
    """The same for the Triton kernels. Imports them.

    dtype: float32, bfloat16 or float16.
    device: a GPU, or the CPU where the kernels run under Triton's interpreter.
    deterministic: the bits of a token's logits don't depend on what is computed beside it.
    kind: int8, or fp8 on a GPU of sm_89 or newer.
    """
    from engine.models.llama_gpu import build_gpu

    wanted = dtype_named(dtype, GPU_DTYPES)
    config, weights = find_model(name_or_path, seed, vocab_size=vocab_size, max_context=max_context)
    with Tensors(config, text_weights(config, weights), wanted, device, kind=kind) as tensors:
        model = build_gpu(tensors, deterministic=deterministic)
    if config.vision is not None:
        model.vision = load_vision(config, lambda name, shape: weights.get(name, shape).to(device), weights.has, wanted)
    return model


class Renamed:
    """Weights whose names begin otherwise: of a language model within another model."""

    def __init__(self, weights: Weights, names: Mapping[str, str]) -> None:
        """names: beginning of a language model's own names -> what is there instead."""
        self._weights = weights
        self._names = names

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._weights.get(self._there(name), shape)

    def has(self, name: str) -> bool:
        return self._weights.has(self._there(name))

    def _there(self, name: str) -> str:
        return next((there + name[len(own) :] for own, there in self._names.items() if name.startswith(own)), name)


def text_weights(config: ModelConfig, weights: Weights) -> Weights:
    """The language model's weights, by its own names."""
    if config.vision is None or isinstance(weights, RandomWeights):
        return weights
    for model in ("language_model.model.", "model.language_model."):
        if weights.has(f"{model}embed_tokens.weight"):
            head = "language_model.lm_head." if weights.has("language_model.lm_head.weight") else "lm_head."
            return Renamed(weights, {"model.": model, "lm_head.": head})
    return weights


def find_model(
    name_or_path: str, seed: int, *, vocab_size: int | None = None, max_context: int | None = None
) -> tuple[ModelConfig, Weights]:
    """What the model is made of, and where its weights come from. Reads none of them yet."""
    if name_or_path in SHAPES:
        shape = named_shape(name_or_path, vocab_size)
        return shape if max_context is None else with_context(shape, max_context), RandomWeights(seed)
    folder = model_folder(name_or_path)
    config = read_config(folder, max_context)
    return config, family_named(config.family).stored(SafetensorsFolder(folder), config)


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
