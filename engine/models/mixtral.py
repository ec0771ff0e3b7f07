"""Mixtral: a Llama whose MLPs are mixtures of experts (Jiang et al., arXiv 2401.04088).

y = sum over the k experts e with the largest router logits of share_e * SwiGLU_e(h),
share = softmax of all router logits, renormalised over the k taken
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.cpu.linear import Linear
from engine.kernels.cpu.moe import moe
from engine.models.config import ModelConfig, decoder_config, required
from engine.models.family import Family
from engine.models.llama import MLP, SwiGLU
from engine.models.llama_variants import same_window

if TYPE_CHECKING:
    from engine.models.llama_gpu import Projection
    from engine.models.weights import SafetensorsFolder, Tensors, Weights

LAYER = "block_sparse_moe"
"""What the mixture of a layer is called on the hub."""


class Routing(NamedTuple):
    """Which experts each token takes."""

    chosen: Tensor
    """int64 [tokens, k]."""
    shares: Tensor
    """float32 [tokens, k]; a token's sum to 1."""


def route(logits: Tensor, k: int) -> Routing:
    """logits [tokens, experts] in the model's dtype. The softmax is taken in float32, as transformers takes it."""
    probabilities = F.softmax(logits.to(torch.float32), dim=-1)
    shares, chosen = torch.topk(probabilities, k, dim=-1)
    return Routing(chosen, shares / shares.sum(dim=-1, keepdim=True))


class SparseMoE:
    """One layer's experts on the CPU."""

    def __init__(self, router: Tensor, experts: Sequence[SwiGLU], k: int) -> None:
        """router [experts, hidden]: the rows that a token's logits come from."""
        self.router = router
        self.experts = experts
        self.k = k

    def plus(self, h: Tensor, residual: Tensor) -> Tensor:
        """residual + the mixture's output: [tokens, hidden] each."""
        routing = route(F.linear(h, self.router), self.k)
        return moe(h, self.experts, routing.chosen, routing.shares).add_(residual)


class Mixtral(Family):
    model_type = "mixtral"
    architecture = "MixtralForCausalLM"

    def read(self, config: Mapping[str, Any]) -> ModelConfig:
        return decoder_config(
            config,
            self.model_type,
            max_position=32768,
            norm_eps=1e-5,
            rope_theta=1e6,
            n_experts=required(config, "num_local_experts"),
            n_experts_per_token=required(config, "num_experts_per_tok"),
            windows=same_window(config, config.get("sliding_window")),
        )

    def write(self, config: ModelConfig) -> dict[str, Any]:
        return {"num_local_experts": config.n_experts, "num_experts_per_tok": config.n_experts_per_token}

    def mlp_shapes(self, config: ModelConfig) -> dict[str, tuple[int, int]]:
        inner, hidden = config.intermediate_size, config.hidden_size
        shapes = {f"{LAYER}.gate": (config.n_experts, hidden)}
        for i in range(config.n_experts):
            at = f"{LAYER}.experts.{i}"
            shapes |= {f"{at}.w1": (inner, hidden), f"{at}.w3": (inner, hidden), f"{at}.w2": (hidden, inner)}
        return shapes

    def mlp(self, layer: str, tensors: Tensors, linear: Callable[..., Linear]) -> MLP:
        at, config = f"{layer}.{LAYER}", tensors.config
        router = tensors.get(f"{at}.gate.weight")
        experts = [
            SwiGLU(*(linear(f"{at}.experts.{i}.{name}") for name in ("w1", "w3", "w2")))
            for i in range(config.n_experts)
        ]
        return SparseMoE(router, experts, config.n_experts_per_token)

    def mlp_gpu(self, layer: str, tensors: Tensors, projection: Callable[..., Projection]) -> Projection:
        from engine.models.llama_gpu import Experts  # Triton comes with it

        at, config = f"{layer}.{LAYER}", tensors.config
        router = projection(f"{at}.gate")
        each = [f"{at}.experts.{i}" for i in range(config.n_experts)]
        gate_up = tensors.experts([(f"{one}.w1", f"{one}.w3") for one in each])
        down = tensors.experts([(f"{one}.w2",) for one in each])
        return Experts(router, gate_up, down, config.n_experts_per_token)

    def stored(self, folder: SafetensorsFolder, config: ModelConfig) -> Weights:
        return FusedExperts(folder, config) if folder.has("model.layers.0.mlp.gate.weight") else folder


class FusedExperts:
    """Weights of a folder in which a layer's experts are one tensor, as transformers 5 holds them in memory.

    `mlp.experts.gate_up_proj` [experts, 2 * inner, hidden] is w1 above w3, `mlp.experts.down_proj` is w2. What it saves
    has the hub's names unless it is told `save_original_format=False`.
    """

    def __init__(self, folder: SafetensorsFolder, config: ModelConfig) -> None:
        self._folder = folder
        self._config = config

    def has(self, name: str) -> bool:
        return self._folder.has(self._there(name))

    def get(self, name: str, shape: tuple[int, ...]) -> Tensor:
        there, c = self._there(name), self._config
        if "experts" not in there:
            return self._folder.get(there, shape)
        expert, which = name.split(".")[-3:-1]
        if which == "w2":
            return self._folder.part(there, (c.n_experts, c.hidden_size, c.intermediate_size), int(expert))
        rows = slice(0, c.intermediate_size) if which == "w1" else slice(c.intermediate_size, 2 * c.intermediate_size)
        return self._folder.part(there, (c.n_experts, 2 * c.intermediate_size, c.hidden_size), int(expert), rows)

    def _there(self, name: str) -> str:
        """`model.layers.3.block_sparse_moe.experts.5.w1.weight` -> `model.layers.3.mlp.experts.gate_up_proj`"""
        layer, found, below = name.partition(f".{LAYER}.")
        if not found:
            return name
        if below.startswith("experts."):
            below = "experts.down_proj" if below.endswith(".w2.weight") else "experts.gate_up_proj"
        return f"{layer}.mlp.{below}"


MIXTRAL = Mixtral()
