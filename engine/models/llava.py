"""LLaVA 1.5 (Liu et al., arXiv 2310.03744): a language model that reads pictures as rows of its own embedding space.

    picture -> CLIP's patch features of the last layer but one -> linear, GELU, linear -> embeddings in the prompt

The language model is one of the Llama family and knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.clip import ACTIVATIONS, Affine, Layer, VisionTower
from engine.models.config import CHANGES_NUMBERS, ModelConfig, ModelError, config_from_hf
from engine.models.family import Family
from engine.models.vision_config import VisionConfig, vision_from_hf

TOWERS = ("vision_tower.vision_model", "model.vision_tower.vision_model", "vision_tower", "model.vision_tower")
PROJECTORS = ("multi_modal_projector", "model.multi_modal_projector")
"""How published models and those that transformers saves call their parts."""


class Vision(NamedTuple):
    """What turns pictures into embeddings."""

    tower: VisionTower
    first: Affine
    second: Affine

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels [images, 3, size, size], normalised -> [images, tokens, hidden of the language model]."""
        h = F.linear(self.tower(pixels), self.first.weight, self.first.bias)
        return F.linear(ACTIVATIONS[self.tower.config.projector_act](h), self.second.weight, self.second.bias)


def tower_shapes(config: VisionConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the tower that is used, by its name within the tower."""
    c, hidden = config, config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (hidden,),
        "embeddings.patch_embedding.weight": (hidden, 3, c.patch_size, c.patch_size),
        "embeddings.position_embedding.weight": (1 + c.n_patches, hidden),
    }

    def affine(name: str, outputs: int, *inputs: int) -> None:
        shapes[f"{name}.weight"] = (outputs, *inputs)
        shapes[f"{name}.bias"] = (outputs,)

    affine("pre_layrnorm", hidden)
    for i in range(c.n_run):
        at = f"encoder.layers.{i}"
        affine(f"{at}.layer_norm1", hidden)
        for which in ("q", "k", "v", "out"):
            affine(f"{at}.self_attn.{which}_proj", hidden, hidden)
        affine(f"{at}.layer_norm2", hidden)
        affine(f"{at}.mlp.fc1", c.intermediate_size, hidden)
        affine(f"{at}.mlp.fc2", hidden, c.intermediate_size)
    return shapes


def projector_shapes(config: VisionConfig, text_hidden: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "linear_1.weight": (text_hidden, config.hidden_size),
        "linear_2.weight": (text_hidden, text_hidden),
    }
    if config.projector_bias:
        shapes |= {"linear_1.bias": (text_hidden,), "linear_2.bias": (text_hidden,)}
    return shapes


def vision_parameters(config: ModelConfig) -> int:
    """Numbers in the tower and the projector of a model; 0 without one."""
    if config.vision is None:
        return 0
    shapes = [*tower_shapes(config.vision).values(), *projector_shapes(config.vision, config.hidden_size).values()]
    return sum(torch.Size(shape).numel() for shape in shapes)


Get = Callable[[str, tuple[int, ...]], Tensor]
"""The tensor of that name and shape. Raises ModelError."""


def load_vision(config: ModelConfig, get: Get, has: Callable[[str], bool], dtype: torch.dtype) -> Vision:
    """The tower and the projector of a model that has them. Raises ModelError naming what is missing."""
    vision = config.vision
    assert vision is not None
    tower = _root(TOWERS, "embeddings.class_embedding", has)
    projector = _root(PROJECTORS, "linear_1.weight", has)
    shapes = {
        **{f"{tower}.{name}": shape for name, shape in tower_shapes(vision).items()},
        **{f"{projector}.{name}": shape for name, shape in projector_shapes(vision, config.hidden_size).items()},
    }

    def tensor(name: str) -> Tensor:
        return get(name, shapes[name]).to(dtype)

    def affine(name: str) -> Affine:
        return Affine(tensor(f"{name}.weight"), tensor(f"{name}.bias") if f"{name}.bias" in shapes else None)

    def layer(at: str) -> Layer:
        return Layer(
            norm1=affine(f"{at}.layer_norm1"),
            q=affine(f"{at}.self_attn.q_proj"),
            k=affine(f"{at}.self_attn.k_proj"),
            v=affine(f"{at}.self_attn.v_proj"),
            out=affine(f"{at}.self_attn.out_proj"),
            norm2=affine(f"{at}.layer_norm2"),
            fc1=affine(f"{at}.mlp.fc1"),
            fc2=affine(f"{at}.mlp.fc2"),
        )

    built = VisionTower(
        vision,
        tensor(f"{tower}.embeddings.class_embedding"),
        tensor(f"{tower}.embeddings.patch_embedding.weight"),
        tensor(f"{tower}.embeddings.position_embedding.weight"),
        affine(f"{tower}.pre_layrnorm"),
        [layer(f"{tower}.encoder.layers.{i}") for i in range(vision.n_run)],
    )
    return Vision(built, affine(f"{projector}.linear_1"), affine(f"{projector}.linear_2"))


def _root(names: Sequence[str], tensor: str, has: Callable[[str], bool]) -> str:
    found = next((name for name in names if has(f"{name}.{tensor}")), None)
    if found is None:
        raise ModelError(f"tensor {names[0]}.{tensor} is missing (nor is it there as {', '.join(names[1:])})")
    return found


class Llava(Family):
    """Reads as its language model, with what that sees through: the configuration's family is the language model's."""

    model_type = "llava"
    architecture = "LlavaForConditionalGeneration"

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        text = dict(config.get("text_config") or {})
        text.setdefault("model_type", "llama")
        text.pop("architectures", None)
        for name in ("bos_token_id", "eos_token_id", "tie_word_embeddings"):
            if text.get(name) is None and config.get(name) is not None:
                text[name] = config[name]
        for name in CHANGES_NUMBERS:
            if config.get(name):
                raise ModelError(
                    f"config field {name}={config[name]!r} isn't supported; remove it or use another model"
                )
        sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
        if text["model_type"] == "llama":  # published configs leave out what is LLaVA 1.5 7B's
            text = {**sizes, "vocab_size": 32064, **text}
        try:
            vision = vision_from_hf(config)
        except ValueError as error:
            raise ModelError(f"config field {error}") from error
        return replace(config_from_hf(text), vision=vision)


LLAVA = Llava()
