"""A small LLaVA with random weights, as transformers makes it, and pictures drawn for the tests."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw

from engine.config import EngineConfig
from engine.engine import Engine
from engine.executor.cpu import CpuExecutor
from engine.models.llama import Llama
from engine.models.load import load_model
from engine.models.preprocess import picture_reader

VOCAB, IMAGE_ID, SIZE, PATCH = 97, 96, 28, 7
N_TOKENS = (SIZE // PATCH) ** 2


def hf_llava(seed: int = 3, **changes: Any) -> Any:
    """float64, random weights that hide no mistake."""
    text = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, image_size=SIZE,
        patch_size=PATCH, projection_dim=16,
    )  # fmt: skip
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID, **changes)
    torch.manual_seed(seed)
    model = transformers.LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double()


@pytest.fixture(scope="session")
def saved_llava(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """(model, folder)"""
    model = hf_llava()
    folder = tmp_path_factory.mktemp("llava")
    model.save_pretrained(folder)
    return model, folder


def draw(seed: int, size: tuple[int, int] = (40, 33)) -> Image.Image:
    """A picture like no other."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        a, b = sorted(rng.integers(0, size[0], 2).tolist()), sorted(rng.integers(0, size[1], 2).tolist())
        pen.ellipse((a[0], b[0], a[1] + 2, b[1] + 2), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return out.getvalue()


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """A PNG file's bytes, by number."""
    return lambda seed, size=(40, 33): file_of(draw(seed, size))


@functools.cache
def _model(folder: Path) -> Llama:
    return load_model(str(folder), "float64")


def engine_of(folder: Path, **kwargs: Any) -> Engine:
    config = EngineConfig(model=str(folder), dtype="float64", **{"pool_tokens": 2048, "device": "cpu", **kwargs})
    model = _model(folder)
    assert config.pool_tokens is not None
    executor = CpuExecutor(model, n_pages=config.pool_tokens // config.page_size, page_size=config.page_size)
    return Engine(executor, None, config, pictures=picture_reader(model.config, folder))


def words(n: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(1, VOCAB - 1, n).tolist()
