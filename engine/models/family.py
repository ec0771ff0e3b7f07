"""A family of models: how its files are read, which tensors it has, what stands after the attention of its layers.

All are one decoder (`engine.models.llama`, and `engine.models.llama_gpu` for GPUs): RMS norms before attention and MLP,
rotary positions, grouped-query attention with or without windows, biases and norms of queries and keys. `Family` is
Llama's; a new one derives from it, overrides what differs, and takes a line in `engine.models.families`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from engine.kernels.cpu.linear import Linear
from engine.models.config import ModelConfig, decoder_config
from engine.models.llama import MLP, SwiGLU

if TYPE_CHECKING:
    from engine.models.llama_gpu import Projection
    from engine.models.weights import SafetensorsFolder, Tensors, Weights


class Family:
    """The Llama of arXiv 2302.13971, and what a family may change of it."""

    model_type = "llama"
    """Of `config.json`."""
    architecture = "LlamaForCausalLM"
    """What transformers calls it."""
    activations: tuple[str, ...] = ("silu", "swish")
    """Names that `hidden_act` may have; all mean the same."""

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        """The contents of `config.json`. Raises ModelError naming the field that isn't supported."""
        bias = bool(config.get("attention_bias", False))
        mlp_bias = bool(config.get("mlp_bias", False))
        return decoder_config(config, self.model_type, qkv_bias=bias, out_bias=bias, mlp_bias=mlp_bias)

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """Fields of `config.json` that Llama has not."""
        return {}

    def mlp_shapes(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        """Projections of a layer's MLP: name below the layer -> (outputs, inputs), in the order they're asked for."""
        inner, hidden = config.intermediate_size, config.hidden_size
        return {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}

    def mlp(self, layer: str, tensors: Tensors, linear: Callable[..., Linear]) -> MLP:
        """The MLP on the CPU. layer: `model.layers.3`; linear(*names): projections of one input, stacked."""
        gate, up, down = (linear(f"{layer}.mlp.{name}_proj") for name in ("gate", "up", "down"))
        return SwiGLU(gate, up, down)

    def mlp_gpu(self, layer: str, tensors: Tensors, projection: Callable[..., Projection]) -> Projection:
        """The MLP on a GPU: [tokens, hidden] -> [tokens, hidden]. projection(*names): as `linear` above."""
        from engine.models.llama_gpu import SwiGLU as SwiGLUGpu  # Triton comes with it

        gate_up = projection(f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj")
        return SwiGLUGpu(gate_up, projection(f"{layer}.mlp.down_proj"))

    def stored(self, folder: SafetensorsFolder, config: ModelConfig) -> Weights:
        """The weights of a folder by the names that we ask for, where files have others."""
        return folder

    def gpu_problem(self, *, deterministic: bool) -> str | None:
        """Why a GPU can't run it so; `deterministic`: bits that don't depend on the batch."""
        return None
