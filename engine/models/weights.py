"""Weights of a model: read from safetensors or drawn from a seed, checked against the shapes the config asks for.

Nothing is ever loaded through pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engine.kernels.cpu.linear import Linear
from engine.models.config import ModelConfig, ModelError, config_to_hf
from engine.models.families import family_named
from engine.models.llama import Block, Llama
from engine.models.quantise import Quantised, is_quantised, quantise, stored_dtype

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float64": torch.float64,
}
GPU_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

MOST_THREADS = 16
"""That fetch weights ahead. Each holds one tensor."""


def dtype_named(name: str | torch.dtype, available: Mapping[str, torch.dtype] = DTYPES) -> torch.dtype:
    """The dtype of that name; those of the CPU are float32 (fp32), bfloat16 (bf16), float64. Raises ModelError."""
    if isinstance(name, torch.dtype):
        name = str(name).removeprefix("torch.")
    if name not in available:
        raise ModelError(f"dtype {name!r} isn't supported; available: {', '.join(available)}")
    return available[name]


class Weights(Protocol):
    """Tensors by their Hugging Face names. Safe to ask from several threads."""

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, on the CPU, in any floating dtype. Raises ModelError when it is missing or of another shape."""

    def has(self, name: str) -> bool:
        """There is a tensor of that name."""


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model: Hugging Face name -> shape, in a fixed order."""
    c, family = config, family_named(config.family)
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
        for name, (outputs, inputs) in family.mlp_shapes(c).items():
            linear(f"{at}.{name}", outputs, inputs, c.mlp_bias)
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

    def has(self, name: str) -> bool:
        return name in self._file_of

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.part(name, shape)

    def part(self, name: str, shape: tuple[int, ...], *index: int | slice) -> Tensor:
        """tensor[index], of which no more is read than that. shape: that of the whole tensor."""
        if not self.has(name):
            raise ModelError(f"{self.folder}: tensor {name!r} is missing")
        path = self.folder / self._file_of[name]
        file = self._file(self._file_of[name])
        try:
            found = tuple(file.get_slice(name).get_shape())
            tensor = file.get_slice(name)[index] if index and found == shape else file.get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{path}: tensor {name!r} can't be read ({error})") from error
        if found != shape:
            raise ModelError(f"{path}: tensor {name!r} has shape {list(found)}, the config asks for {list(shape)}")
        if not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ModelError(f"{path}: tensor {name!r} is {tensor.dtype}; quantised weights aren't supported")
        return tensor


class RandomWeights:
    """Weights drawn from a seed: each tensor from its own generator, so the order of asking doesn't matter."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def has(self, name: str) -> bool:
        return True

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith(("norm.weight", "layer_norm1.weight", "layer_norm2.weight")):
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.randn(shape, generator=generator).mul_(0.02)


class Stacked(NamedTuple):
    """Projections of the same input, one below the other."""

    weight: Tensor
    """[outputs, inputs]: in the model's dtype, or in 8 bits. Of experts: [experts, outputs, inputs]."""
    bias: Tensor | None
    """[outputs]"""
    scale: Tensor | None
    """float32 [outputs], or [experts, outputs], of a weight in 8 bits."""


class Tensors:
    """A model's tensors, each to be asked for once, as the hardware wants them: in its dtype, on its device.

    Some are fetched ahead by other threads, in the order of `tensor_shapes`: drawing or reading them takes longest.
    `kind`: int8 or fp8, for matrices in 8 bits. Each is quantised by the thread that has fetched it, before it goes to
    the device: on the host a thread holds one in full, on the device there is never one.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        dtype: torch.dtype,
        device: torch.device | None = None,
        *,
        kind: str | None = None,
    ) -> None:
        if kind is not None:
            stored_dtype(kind)
        self.config = config
        self.kind = kind
        self.dtype = dtype
        self.device = torch.device("cpu") if device is None else device
        self._weights = weights
        self._shapes = tensor_shapes(config)
        self._n_threads = min(os.cpu_count() or 1, MOST_THREADS)
        self._threads = ThreadPoolExecutor(self._n_threads, "weights")
        self._ahead: dict[str, Future[Tensor | Quantised]] = {}
        self._names = iter(self._shapes)

    def __enter__(self) -> Tensors:
        for _ in range(self._n_threads + 1):
            self._fetch_next()
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def get(self, name: str) -> Tensor:
        """The tensor of that name. Raises ModelError when it is missing or of another shape.

        ValueError for one that is stored in 8 bits: `matrix` gives it with its scale.
        """
        fetched = self._fetched(name)
        if isinstance(fetched, Quantised):
            raise ValueError(f"tensor {name!r} is stored as {self.kind}: ask for it by matrix() or stacked()")
        return fetched.to(self.device)

    def matrix(self, name: str) -> tuple[Tensor, Tensor | None]:
        """A weight and, where it is stored in 8 bits, its scale: [..., outputs, inputs], float32 [..., outputs]."""
        fetched = self._fetched(name)
        if isinstance(fetched, Quantised):
            return fetched.stored.to(self.device), fetched.scale.to(self.device)
        return fetched.to(self.device), None

    def maybe(self, name: str) -> Tensor | None:
        """The tensor, or None where such a model has none."""
        return self.get(name) if name in self else None

    def stacked(self, *names: str) -> Stacked:
        """Several projections of the same input, one below the other."""
        parts = [(*self.matrix(f"{name}.weight"), self.maybe(f"{name}.bias")) for name in names]
        scales = [scale for _, scale, _ in parts if scale is not None]
        biases = [bias for _, _, bias in parts if bias is not None]
        weight = torch.cat([weight for weight, _, _ in parts]) if len(parts) > 1 else parts[0][0]
        return Stacked(weight, torch.cat(biases) if biases else None, torch.cat(scales) if scales else None)

    def experts(self, names: Sequence[Sequence[str]]) -> Stacked:
        """Projections of each expert as one tensor of all; names: of each expert, as for `stacked`. Without biases.

        On the device there is one expert more than in the result, not all of them twice.
        """
        weight = scale = None
        for i, of_one in enumerate(names):
            one = self.stacked(*of_one)
            if weight is None:
                weight = one.weight.new_empty(len(names), *one.weight.shape)
                scale = None if one.scale is None else one.scale.new_empty(len(names), len(one.scale))
            weight[i] = one.weight
            if scale is not None and one.scale is not None:
                scale[i] = one.scale
        if weight is None:
            raise ValueError("a mixture of no experts: give the names of one or more")
        return Stacked(weight, None, scale)

    def _fetched(self, name: str) -> Tensor | Quantised:
        fetched = self._ahead.pop(name).result() if name in self._ahead else self._fetch(name)
        self._fetch_next()
        return fetched

    def _fetch(self, name: str) -> Tensor | Quantised:
        tensor = self._weights.get(name, self._shapes[name])
        if self.kind is None or not is_quantised(name):
            return tensor.to(self.dtype)
        try:
            return quantise(tensor, self.kind)
        except ModelError as error:
            raise ModelError(f"tensor {name!r}: {error}") from error

    def _fetch_next(self) -> None:
        if (name := next(self._names, None)) is not None:
            self._ahead[name] = self._threads.submit(self._fetch, name)


def build(config: ModelConfig, weights: Weights, dtype: torch.dtype, *, kind: str | None = None) -> Llama:
    """Fetches every tensor of the model and lays the projections out for the CPU; `kind`: int8 for 8-bit weights."""
    with Tensors(config, weights, dtype, kind=kind) as tensors:
        get, maybe = tensors.get, tensors.maybe

        def linear(*names: str) -> Linear:
            return Linear(*tensors.stacked(*names))

        def block(at: str) -> Block:
            return Block(
                attention_norm=get(f"{at}.input_layernorm.weight"),
                qkv=linear(*(f"{at}.self_attn.{which}_proj" for which in "qkv")),
                q_norm=maybe(f"{at}.self_attn.q_norm.weight"),
                k_norm=maybe(f"{at}.self_attn.k_norm.weight"),
                out=linear(f"{at}.self_attn.o_proj"),
                mlp_norm=get(f"{at}.post_attention_layernorm.weight"),
                mlp=family_named(config.family).mlp(at, tensors, linear),
            )

        embedding = get("model.embed_tokens.weight").contiguous()
        blocks = [block(f"model.layers.{i}") for i in range(config.n_layers)]
        norm = get("model.norm.weight")
        head = Linear(embedding) if config.tied_embeddings else linear("lm_head")
    return Llama(config, embedding, blocks, norm, head)


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
