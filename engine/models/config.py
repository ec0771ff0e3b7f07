"""What a model is made of, read from a Hugging Face `config.json`; `engine.models.family` tells families apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from engine.models.vision_config import VisionConfig

ROPE_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
CHANGES_NUMBERS = ("quantization_config", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale")
"""Fields that change the numbers and that we don't serve; they may only be absent, null or false."""


class ModelError(ValueError):
    """The model can't be loaded or served. The message names the file, tensor or field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (RoFormer, arXiv 2104.09864) and its stretching for longer contexts."""

    kind: str = "default"
    theta: float = 10000.0
    factor: float = 1.0
    original_max_position: int = 0
    """Context length of the pretraining, tokens (yarn, longrope, llama3)."""
    attention_factor: float | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Shape and options of one model."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    max_context: int = 2048
    """Longest prompt + output served, tokens."""
    rope: RopeConfig = RopeConfig()
    tied_embeddings: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    n_experts: int = 0
    """Of each layer's mixture of experts; 0: plain MLPs."""
    n_experts_per_token: int = 0
    vision: VisionConfig | None = None
    """Of a model that sees pictures."""
    windows: tuple[int | None, ...] = ()
    """A layer's sliding window: the position p sees positions above p - window. Empty: all layers see everything."""
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "hidden_size", "intermediate_size", "n_layers", "n_heads", "n_kv_heads", "head_dim")
        for name in (*sizes, "max_position_embeddings", "max_context"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(f"{name}={value!r}: it must be a whole number of at least 1")
        if self.n_heads % self.n_kv_heads:
            raise ModelError(f"{self.n_heads} query heads can't share {self.n_kv_heads} key-value heads evenly")
        if self.head_dim % 2:
            raise ModelError(f"head_dim={self.head_dim}: rotary embedding needs an even head dimension")
        k, n = self.n_experts_per_token, self.n_experts
        if not 0 <= k <= n or (n > 0) != (k > 0):
            raise ModelError(
                f"n_experts_per_token={k} of n_experts={n}: each token needs at least one expert and at most all of "
                "them (both are 0 in a model without experts)"
            )
        if self.windows and len(self.windows) != self.n_layers:
            raise ModelError(f"{len(self.windows)} sliding windows were given for {self.n_layers} layers")

    def window(self, layer: int) -> int | None:
        """Sliding window of a layer, tokens; None where every earlier position is seen."""
        return self.windows[layer] if self.windows else None

    @property
    def n_layer_parameters(self) -> int:
        """Parameters of the matrices of all layers that a token is multiplied with: of its experts only."""
        heads = 2 * self.n_heads + 2 * self.n_kv_heads
        return self.n_layers * (self.hidden_size * heads * self.head_dim + self.n_mlp_parameters)

    @property
    def n_mlp_parameters(self) -> int:
        """Parameters of one layer's MLP that a token is multiplied with, a router's among them."""
        mlps = max(1, self.n_experts_per_token)
        return self.hidden_size * (3 * mlps * self.intermediate_size + self.n_experts)

    @property
    def kv_elements_per_token(self) -> int:
        """Numbers that K and V of all layers hold for one token."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim


def config_from_hf(
    config: Mapping[str, Any], generation: Mapping[str, Any] | None = None, max_context: int | None = None
) -> ModelConfig:
    """Reads the contents of `config.json` and, for end-of-sequence ids, of `generation_config.json`.

    Takes `rope_parameters` (transformers 5) as well as `rope_theta` and `rope_scaling` (before).
    `max_context` (tokens) overrides the longest context served, within what the rotary embedding defines.
    Raises ModelError naming the architecture or field that isn't supported.
    """
    from engine.models.families import family_of_files  # which imports this

    model = family_of_files(config).read(config)
    if generation is not None and "eos_token_id" in generation:
        model = replace(model, eos_token_ids=_ids(generation["eos_token_id"]))
    return with_context(model, max_context)


def decoder_config(
    config: Mapping[str, Any],
    family: str,
    *,
    kind: type[ModelConfig] = ModelConfig,
    activations: tuple[str, ...] = ("silu", "swish"),
    head_dim: int | None = None,
    max_position: int = 2048,
    norm_eps: float = 1e-6,
    rope_theta: float = 10000.0,
    **own: Any,
) -> ModelConfig:
    """What decoders of the Llama kind have in common, read from their `config.json`.

    head_dim, max_position (tokens), norm_eps, rope_theta: where the file has none. own: further fields of the `kind`.
    Raises ModelError naming the field that is missing or isn't supported.
    """
    for name in CHANGES_NUMBERS:
        if config.get(name):
            raise ModelError(f"config field {name}={config[name]!r} isn't supported; remove it or use another model")
    if config.get("hidden_act", activations[0]) not in activations:
        raise ModelError(
            f"config field hidden_act={config['hidden_act']!r} isn't supported; it must be {activations[0]!r}"
        )
    n_heads, n_layers, hidden = (
        required(config, name) for name in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    head_dim = config.get("head_dim") or head_dim or hidden // n_heads
    max_position = config.get("max_position_embeddings") or max_position
    return kind(
        family=family,
        vocab_size=required(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=required(config, "intermediate_size"),
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads") or n_heads,
        head_dim=head_dim,
        norm_eps=config.get("rms_norm_eps", norm_eps),
        max_position_embeddings=max_position,
        max_context=max_position,
        rope=rope_from_hf(config, max_position, head_dim, rope_theta),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        bos_token_id=config.get("bos_token_id"),
        eos_token_ids=_ids(config.get("eos_token_id")),
        **own,
    )


def required(config: Mapping[str, Any], name: str) -> int:
    """A field that has no default. Raises ModelError when it is missing."""
    if config.get(name) is None:
        raise ModelError(f"config field {name!r} is missing")
    return config[name]


def with_context(config: ModelConfig, max_context: int | None) -> ModelConfig:
    """The configuration with another longest context, tokens; None takes the longest of the model's own.

    Under longrope the context decides between short and long factors; under dynamic scaling, how far the frequencies
    are stretched. Both are fixed once for all requests, else the KV of a prefix would depend on what follows it.
    """
    rope = config.rope
    if max_context is None:
        own = rope.original_max_position if rope.kind == "longrope" else config.max_position_embeddings
        return replace(config, max_context=own)
    if rope.kind != "dynamic" and max_context > config.max_position_embeddings:
        raise ModelError(
            f"max_context={max_context} is beyond the model's max_position_embeddings={config.max_position_embeddings}"
        )
    return replace(config, max_context=max_context)


def rope_from_hf(
    config: Mapping[str, Any], max_position: int, head_dim: int, default_theta: float = 10000.0
) -> RopeConfig:
    """Reads the rotary settings in their new (`rope_parameters`) or old (`rope_theta`, `rope_scaling`) form."""
    settings: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        given = config.get(name)
        if given is not None and not isinstance(given, Mapping):
            raise ModelError(f"config field {name}={given!r} must be a table")
        settings.update(given or {})
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise ModelError("config field rope_parameters differs by layer type, which isn't supported")
    kind = settings.get("rope_type", settings.get("type")) or "default"
    if kind not in ROPE_KINDS:
        raise ModelError(f"rope_type={kind!r} isn't supported; available: {', '.join(ROPE_KINDS)}")
    partial = settings.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ModelError(f"partial_rotary_factor={partial!r} isn't supported; it must be 1")
    original = config.get("original_max_position_embeddings") or settings.get("original_max_position_embeddings")
    original = original or max_position
    needed = {
        "linear": ("factor",),
        "dynamic": ("factor",),
        "yarn": (),
        "longrope": ("short_factor", "long_factor"),
        "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    }
    for name in needed.get(kind, ()):
        if settings.get(name) is None:
            raise ModelError(f"rope_type={kind!r} needs {name!r} in rope_parameters (rope_scaling)")
    for name in ("short_factor", "long_factor"):
        if kind == "longrope" and len(settings[name]) != head_dim // 2:
            raise ModelError(f"{name} has {len(settings[name])} numbers; head_dim={head_dim} needs {head_dim // 2}")
    return RopeConfig(
        kind=kind,
        theta=float(settings.get("rope_theta") or config.get("rope_theta") or default_theta),
        factor=float(settings.get("factor") or (max_position / original if kind in ("yarn", "longrope") else 1.0)),
        original_max_position=original if kind in ("yarn", "longrope", "llama3") else 0,
        attention_factor=settings.get("attention_factor"),
        low_freq_factor=settings.get("low_freq_factor", 1.0),
        high_freq_factor=settings.get("high_freq_factor", 4.0),
        beta_fast=settings.get("beta_fast") or 32.0,
        beta_slow=settings.get("beta_slow") or 1.0,
        mscale=settings.get("mscale"),
        mscale_all_dim=settings.get("mscale_all_dim"),
        truncate=settings.get("truncate", True),
        short_factor=tuple(settings.get("short_factor") or ()),
        long_factor=tuple(settings.get("long_factor") or ()),
    )


def config_to_hf(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a model, so that other engines load the same. Only plain rotary embedding is written."""
    if config.vision is not None:
        raise ModelError("a model that sees pictures can't be exported")
    if config.rope.kind != "default" or any(config.windows):
        raise ModelError("only models with plain rotary embedding and without sliding windows can be exported")
    from engine.models.families import family_named  # which imports this

    family = family_named(config.family)
    return {
        "architectures": [family.architecture],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": family.activations[0],
        "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope.theta,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": config.out_bias,
        "mlp_bias": config.mlp_bias,
        "sliding_window": None,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_ids) or None,
        "torch_dtype": dtype,
        **family.write(config),
    }


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)
