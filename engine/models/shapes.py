"""Named model shapes, served with seeded random weights: speed doesn't depend on what the weights say."""

from __future__ import annotations

import difflib
from dataclasses import replace

from engine.models.config import ModelConfig, ModelError, RopeConfig
from engine.models.vision_config import VisionConfig

SHAPES: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        family="llama",
        vocab_size=512,
        hidden_size=96,
        intermediate_size=256,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        max_position_embeddings=16384,
        max_context=16384,
        rope=RopeConfig(theta=500000.0),
        tied_embeddings=True,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "llama-110m": ModelConfig(
        family="llama",
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=2048,
        n_layers=12,
        n_heads=12,
        n_kv_heads=4,
        head_dim=64,
        norm_eps=1e-5,
        max_position_embeddings=4096,
        max_context=4096,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "mixtral-tiny": ModelConfig(
        family="mixtral",
        vocab_size=512,
        hidden_size=96,
        intermediate_size=128,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        head_dim=16,
        norm_eps=1e-5,
        max_position_embeddings=16384,
        max_context=16384,
        rope=RopeConfig(theta=1e6),
        n_experts=8,
        n_experts_per_token=2,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "mixtral-small": ModelConfig(
        family="mixtral",
        vocab_size=32000,
        hidden_size=768,
        intermediate_size=1024,
        n_layers=12,
        n_heads=12,
        n_kv_heads=4,
        head_dim=64,
        norm_eps=1e-5,
        max_position_embeddings=4096,
        max_context=4096,
        rope=RopeConfig(theta=1e6),
        n_experts=8,
        n_experts_per_token=2,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "mixtral-8x7b": ModelConfig(
        family="mixtral",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=14336,
        n_layers=32,
        n_heads=32,
        n_kv_heads=8,
        head_dim=128,
        norm_eps=1e-5,
        max_position_embeddings=32768,
        max_context=32768,
        rope=RopeConfig(theta=1e6),
        n_experts=8,
        n_experts_per_token=2,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
    "llama-7b": ModelConfig(
        family="llama",
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        norm_eps=1e-5,
        max_position_embeddings=4096,
        max_context=4096,
        bos_token_id=1,
        eos_token_ids=(2,),
    ),
}


SHAPES["llava-tiny"] = replace(
    SHAPES["tiny"],
    vision=VisionConfig(hidden_size=64, intermediate_size=128, n_layers=3, n_heads=4, image_size=56, patch_size=7),
)
SHAPES["llava-small"] = replace(
    SHAPES["llama-110m"],
    vision=VisionConfig(hidden_size=512, intermediate_size=2048, n_layers=12, n_heads=8, image_size=224, patch_size=14),
)
SHAPES["llava-7b"] = replace(
    SHAPES["llama-7b"],
    vocab_size=32064,
    vision=VisionConfig(
        hidden_size=1024, intermediate_size=4096, n_layers=24, n_heads=16, image_size=336, patch_size=14
    ),
)


def named_shape(name: str, vocab_size: int | None = None) -> ModelConfig:
    """The shape called `name`, with another vocabulary size if one is given. Raises ModelError for unknown names."""
    if name not in SHAPES:
        near = difflib.get_close_matches(name, SHAPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"unknown model shape {name!r}; {hint}available: {', '.join(SHAPES)}")
    shape = SHAPES[name]
    return shape if vocab_size is None else replace(shape, vocab_size=vocab_size)
