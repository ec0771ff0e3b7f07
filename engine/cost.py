"""What it costs to compute tokens again: what cost-aware policies are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.models.config import ModelConfig

NOMINAL_FLOPS = 1e11
"""Operations per second of a device that nobody measured. A scale only: ratios do not depend on it."""


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Seconds for n tokens after the first `start`: linear in the tokens, plus attention over all pairs they see."""

    per_token: float
    per_pair: float = 0.0

    def __call__(self, start: int, n: int) -> float:
        return self.per_token * n + self.per_pair * (start * n + n * (n + 1) / 2)

    @classmethod
    def of(cls, model: ModelConfig, flops: float = NOMINAL_FLOPS) -> PrefillCost:
        """Counted: 2 operations a token and parameter of the layers' matrices; 4 a pair, head, dimension, layer."""
        return cls(2 * model.n_layer_parameters / flops, 4 * model.n_layers * model.n_heads * model.head_dim / flops)


UNIT = PrefillCost(per_token=1.0)
"""Without a model: a token costs one unit, wherever it stands."""
