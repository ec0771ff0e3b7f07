"""A family of models of your own: Arcee's (AFM-4.5B), a Llama whose MLP is down(relu(up(h))^2), without a gate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from engine.kernels.cpu.linear import Linear
from engine.models.config import ModelConfig, decoder_config
from engine.models.family import Family
from engine.models.weights import Tensors

Projection = Callable[[Tensor], Tensor]


class SquaredRelu(NamedTuple):
    """The MLP on the CPU."""

    up: Linear
    down: Linear

    def plus(self, h: Tensor, residual: Tensor) -> Tensor:
        return self.down.plus(self.up(h).relu_().square_(), residual)


@dataclass(frozen=True)
class SquaredReluGpu:
    """The MLP on a GPU."""

    up: Projection
    down: Projection

    def __call__(self, h: Tensor) -> Tensor:
        return self.down(self.up(h).relu_().square_())


@dataclass(frozen=True, slots=True, kw_only=True)
class ArceeConfig(ModelConfig):
    @property
    def n_mlp_parameters(self) -> int:
        return 2 * self.hidden_size * self.intermediate_size


class Arcee(Family):
    model_type = "arcee"
    architecture = "ArceeForCausalLM"
    activations = ("relu2",)

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        bias = bool(config.get("attention_bias", False))
        return decoder_config(
            config,
            self.model_type,
            kind=ArceeConfig,
            activations=self.activations,
            max_position=4096,
            norm_eps=1e-5,
            qkv_bias=bias,
            out_bias=bias,
            mlp_bias=bool(config.get("mlp_bias", False)),
        )

    def mlp_shapes(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        inner, hidden = config.intermediate_size, config.hidden_size
        return {"mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}

    def mlp(self, layer: str, tensors: Tensors, linear: Callable[..., Linear]) -> SquaredRelu:
        return SquaredRelu(linear(f"{layer}.mlp.up_proj"), linear(f"{layer}.mlp.down_proj"))

    def mlp_gpu(self, layer: str, tensors: Tensors, projection: Callable[..., Projection]) -> SquaredReluGpu:
        return SquaredReluGpu(projection(f"{layer}.mlp.up_proj"), projection(f"{layer}.mlp.down_proj"))


ARCEE = Arcee()
