"""What tells Llama, Mistral, Qwen2 and Qwen3 apart: biases, windows, norms of queries and keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.models.config import ModelConfig, ModelError, decoder_config, required
from engine.models.family import Family


class Mistral(Family):
    """Mistral (arXiv 2310.06825): a sliding window in all layers, unless the file says null."""

    model_type = "mistral"
    architecture = "MistralForCausalLM"

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        windows = same_window(config, config.get("sliding_window", 4096))
        return decoder_config(config, self.model_type, max_position=32768, windows=windows)


class Qwen2(Family):
    """Qwen2 (arXiv 2407.10671): biases of queries, keys and values; windows in some layers."""

    model_type = "qwen2"
    architecture = "Qwen2ForCausalLM"

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        windows = windows_by_layer(config)
        return decoder_config(config, self.model_type, max_position=32768, qkv_bias=True, windows=windows)


class Qwen3(Family):
    """Qwen3 (arXiv 2505.09388): norms of queries and keys; windows in some layers."""

    model_type = "qwen3"
    architecture = "Qwen3ForCausalLM"

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        bias = bool(config.get("attention_bias", False))
        return decoder_config(
            config,
            self.model_type,
            head_dim=128,
            max_position=32768,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm=True,
            windows=windows_by_layer(config),
        )


def same_window(config: Mapping[str, Any], window: int | None) -> tuple[int | None, ...]:
    """`ModelConfig.windows` where all layers have the same, or none."""
    return (window,) * required(config, "num_hidden_layers") if window else ()


def windows_by_layer(config: Mapping[str, Any]) -> tuple[int | None, ...]:
    """`ModelConfig.windows` where `layer_types` or `max_window_layers` says which layers have one."""
    if not config.get("use_sliding_window", False):
        return ()
    n_layers, window, first = (
        required(config, "num_hidden_layers"),
        config.get("sliding_window", 4096),
        config.get("max_window_layers", 28),
    )
    kinds = config.get("layer_types") or [
        "sliding_attention" if i >= first else "full_attention" for i in range(n_layers)
    ]
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown or len(kinds) != n_layers:
        raise ModelError(f"config field layer_types={kinds!r} isn't supported for {n_layers} layers")
    windows = tuple(window if kind == "sliding_attention" else None for kind in kinds)
    return windows if any(windows) else ()


LLAMA, MISTRAL, QWEN2, QWEN3 = Family(), Mistral(), Qwen2(), Qwen3()
