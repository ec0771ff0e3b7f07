"""What the eyes of a LLaVA are made of, read from a Hugging Face `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """A CLIP tower and the projector behind it."""

    hidden_size: int
    intermediate_size: int
    n_layers: int
    """Of the tower as published; those behind `feature_layer` are left out."""
    n_heads: int
    image_size: int
    """Pixels a side."""
    patch_size: int
    norm_eps: float = 1e-5
    act: str = "quick_gelu"
    feature_layer: int = -2
    """Whose output is taken: n is that of the n-th layer, 0 what goes into the first, negative counts from the end."""
    keeps_class_token: bool = False
    projector_act: str = "gelu"
    projector_bias: bool = True
    image_token_id: int | None = None
    """What stands for an image in a prompt's tokens; None where the tokenizer has no token for it."""

    @property
    def n_run(self) -> int:
        """Layers that are run."""
        return self.feature_layer % (self.n_layers + 1)

    @property
    def n_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2

    @property
    def n_tokens(self) -> int:
        """Positions that an image takes in a prompt."""
        return self.n_patches + self.keeps_class_token


_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")


def vision_from_hf(config: Mapping[str, Any]) -> VisionConfig:
    """Reads a LLaVA's config. Raises ValueError naming the field that isn't supported."""
    vision = config.get("vision_config") or {}
    if vision.get("model_type", "clip_vision_model") != "clip_vision_model":
        raise ValueError(
            f"vision_config.model_type={vision['model_type']!r} isn't supported; it must be clip_vision_model"
        )
    layer = config.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise ValueError(f"vision_feature_layer={layer!r} isn't supported; it must be one layer's number")
    strategy = config.get("vision_feature_select_strategy", "default")
    if strategy not in ("default", "full"):
        raise ValueError(f"vision_feature_select_strategy={strategy!r} isn't supported; it must be default or full")
    for name in _SIZES:
        size = vision.get(name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"vision_config.{name}={size!r} isn't supported; it must be a whole number from 1 on")
    found = VisionConfig(
        hidden_size=vision.get("hidden_size", 1024),
        intermediate_size=vision.get("intermediate_size", 4096),
        n_layers=vision.get("num_hidden_layers", 24),
        n_heads=vision.get("num_attention_heads", 16),
        image_size=vision.get("image_size", 336),
        patch_size=vision.get("patch_size", 14),
        norm_eps=vision.get("layer_norm_eps", 1e-5),
        act=vision.get("hidden_act", "quick_gelu"),
        feature_layer=layer,
        keeps_class_token=strategy == "full",
        projector_act=config.get("projector_hidden_act", "gelu"),
        projector_bias=config.get("multimodal_projector_bias", True),
        image_token_id=config.get("image_token_index", config.get("image_token_id", 32000)),
    )
    for field, act in (("vision_config.hidden_act", found.act), ("projector_hidden_act", found.projector_act)):
        if act not in ("quick_gelu", "gelu"):
            raise ValueError(f"{field}={act!r} isn't supported; it must be quick_gelu or gelu")
    if vision.get("num_channels", 3) != 3:
        raise ValueError(f"vision_config.num_channels={vision['num_channels']} isn't supported; it must be 3")
    if found.hidden_size % found.n_heads:
        raise ValueError(
            f"vision_config.num_attention_heads={found.n_heads} isn't supported; it must divide hidden_size="
            f"{found.hidden_size}"
        )
    if found.image_size < found.patch_size:
        raise ValueError(
            f"vision_config.patch_size={found.patch_size} isn't supported; it must be at most image_size="
            f"{found.image_size}"
        )
    if not -found.n_layers - 1 <= layer <= found.n_layers:
        raise ValueError(f"vision_feature_layer={layer} of a tower of {found.n_layers} layers")
    return found
