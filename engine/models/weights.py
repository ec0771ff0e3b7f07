"""Weights of a model: read from safetensors or drawn from a seed, checked against the shapes the config asks for.

Nothing is ever loaded through pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.kernels.cpu.linear import Linear
from engine.models.config import ModelConfig, ModelError, config_to_hf
from engine.models.llama import Block, Llama

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}


def dtype_named(name: str | torch.dtype) -> torch.dtype:
    """float32 (fp32), bfloat16 (bf16) or float64. Raises ModelError for others."""
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name not in DTYPES:
        raise ModelError(f"dtype {name!r} isn't supported; available: {', '.join(DTYPES)}")
    return DTYPES[name]


class Weights(Protocol):
    """Tensors by their Hugging Face names."""

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, on the CPU, in any floating dtype. Raises ModelError when it is missing or of another shape."""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model: Hugging Face name -> shape, in a fixed order."""
    c = config
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c.vocab_size, c.hidden_size)}

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    for i in range(c.n_layers):
        at = f"model.layers.{i}"
        shapes[f"{at}.input_layernorm.weight"] = (c.hidden_size,)
        linear(f"{at}.self_attn.q_proj", queries, c.hidden_size, c.qkv_bias)
        linear(f"{at}.self_attn.k_proj", keys, c.hidden_size, c.qkv_bias)
        linear(f"{at}.self_attn.v_proj", keys, c.hidden_size, c.qkv_bias)
        if c.qk_norm:
            shapes[f"{at}.self_attn.q_norm.weight"] = (c.head_dim,)
            shapes[f"{at}.self_attn.k_norm.weight"] = (c.head_dim,)
        linear(f"{at}.self_attn.o_proj", c.hidden_size, queries, c.out_bias)
        shapes[f"{at}.post_attention_layernorm.weight"] = (c.hidden_size,)
        linear(f"{at}.mlp.gate_proj", c.intermediate_size, c.hidden_size, c.mlp_bias)
        linear(f"{at}.mlp.up_proj", c.intermediate_size, c.hidden_size, c.mlp_bias)
        linear(f"{at}.mlp.down_proj", c.hidden_size, c.intermediate_size, c.mlp_bias)
    shapes["model.norm.weight"] = (c.hidden_size,)
    if not c.tied_embeddings:
        shapes["lm_head.weight"] = (c.vocab_size, c.hidden_size)
    return shapes


class SafetensorsFolder:
    """The weights in a Hugging Face folder: `model.safetensors`, or shards with `model.safetensors.index.json`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: dict[str, Any] = {}
        self._file_of = self._index()

    def _index(self) -> dict[str, str]:
        single, index = self.folder / "model.safetensors", self.folder / "model.safetensors.index.json"
        if index.is_file():
            try:
                return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
            except (json.JSONDecodeError, KeyError, TypeError, ValueError, OSError) as error:
                raise ModelError(f"{index}: not a readable index of weight files ({error!r})") from error
        if single.is_file():
            return dict.fromkeys(self._file("model.safetensors").keys(), "model.safetensors")
        others = sorted(path.name for path in self.folder.glob("*.bin"))
        why = (
            f"; {', '.join(others)} are pickle files, which are never loaded: convert them to safetensors"
            if others
            else ""
        )
        raise ModelError(f"{self.folder}: no model.safetensors and no model.safetensors.index.json here{why}")

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self.folder / name
            if not path.is_file():
                raise ModelError(f"{path}: this weight file is missing")
            try:
                self._open[name] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError, ValueError) as error:
                raise ModelError(f"{path}: truncated or corrupt weight file ({error})") from error
        return self._open[name]

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._file_of:
            raise ModelError(f"{self.folder}: tensor {name!r} is missing")
        path = self.folder / self._file_of[name]
        try:
            tensor = self._file(self._file_of[name]).get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: tensor {name!r} can't be read ({error})") from error
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{path}: tensor {name!r} has shape {list(tensor.shape)}, the config asks for {list(shape)}"
            )
        if not tensor.is_floating_point():
            raise ModelError(f"{path}: tensor {name!r} is {tensor.dtype}; quantised weights aren't supported")
        return tensor


class RandomWeights:
    """Weights drawn from a seed: each tensor from its own generator, so the order of asking doesn't matter."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator).mul_(0.02)


def build(config: ModelConfig, weights: Weights, dtype: torch.dtype) -> Llama:
    """Fetches every tensor of the model, one at a time, and lays the projections out for the hardware."""
    shapes = tensor_shapes(config)

    def get(name: str) -> Tensor:
        return weights.get(name, shapes[name]).to(dtype)

    def maybe(name: str) -> Tensor | None:
        return get(name) if name in shapes else None

    def linear(*names: str) -> Linear:
        matrices = [get(f"{name}.weight") for name in names]
        biases = [get(f"{name}.bias") for name in names if f"{name}.bias" in shapes]
        return Linear(
            torch.cat(matrices) if len(matrices) > 1 else matrices[0],
            torch.cat(biases) if biases else None,
        )

    def block(at: str) -> Block:
        return Block(
            attention_norm=get(f"{at}.input_layernorm.weight"),
            qkv=linear(*(f"{at}.self_attn.{which}_proj" for which in "qkv")),
            q_norm=maybe(f"{at}.self_attn.q_norm.weight"),
            k_norm=maybe(f"{at}.self_attn.k_norm.weight"),
            out=linear(f"{at}.self_attn.o_proj"),
            mlp_norm=get(f"{at}.post_attention_layernorm.weight"),
            gate=linear(f"{at}.mlp.gate_proj"),
            up=linear(f"{at}.mlp.up_proj"),
            down=linear(f"{at}.mlp.down_proj"),
        )

    embedding = get("model.embed_tokens.weight").contiguous()
    blocks = [block(f"model.layers.{i}") for i in range(config.n_layers)]
    head = Linear(embedding) if config.tied_embeddings else linear("lm_head")
    return Llama(config, embedding, blocks, get("model.norm.weight"), head)


def save_random(config: ModelConfig, seed: int, dtype: torch.dtype, folder: Path) -> None:
    """Writes `config.json` and `model.safetensors` of a shape with seeded weights, for other engines to load the same.

    Both files appear whole or not at all. Raises ModelError when the folder can't be written.
    """
    weights = RandomWeights(seed)
    tensors = {name: weights.get(name, shape).to(dtype) for name, shape in tensor_shapes(config).items()}
    contents = config_to_hf(config, str(dtype).removeprefix("torch."))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in _replaced(folder / "model.safetensors"):
            save_file(tensors, path, metadata={"format": "pt"})
        for path in _replaced(folder / "config.json"):
            path.write_text(json.dumps(contents, indent=1), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{folder}: the model can't be written here ({error})") from error


def _replaced(path: Path) -> Iterator[Path]:
    """A path to write to, moved to `path` once that is done."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_json(path: Path) -> Mapping[str, object]:
    """A JSON object. Raises ModelError naming the file."""
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(contents, dict):
        raise ModelError(f"{path}: must hold a JSON object, holds {type(contents).__name__}")
    return contents
