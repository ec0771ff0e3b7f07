"""Frequencies of the rotary embedding, plain and stretched for longer contexts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from engine.models.config import ModelConfig, RopeConfig


def rotary_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """Angle per position of each pair of dimensions, float32 [head_dim / 2], and the factor on cosine and sine.

    Sources: linear, Chen et al., arXiv 2306.15595; dynamic, NTK-aware scaling; yarn, arXiv 2309.00071; longrope,
    arXiv 2402.13753; llama3, the Llama 3.1 release.
    """
    rope, dim = config.rope, config.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    plain = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "dynamic":
        stretch = max(config.max_context / config.max_position_embeddings, 1.0)
        theta = rope.theta * (rope.factor * stretch - (rope.factor - 1)) ** (dim / (dim - 2))
        return 1.0 / theta**exponents, 1.0
    if rope.kind == "yarn":
        return _yarn(rope, dim, exponents)
    if rope.kind == "longrope":
        return _longrope(rope, config.max_context, exponents)
    if rope.kind == "llama3":
        return _llama3(rope, plain), 1.0
    return plain, 1.0


def _yarn(rope: RopeConfig, dim: int, exponents: Tensor) -> tuple[Tensor, float]:
    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    def dimension_that_turns(rotations: float) -> float:
        return dim * math.log(rope.original_max_position / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    scale = rope.attention_factor
    if scale is None:
        scale = mscale(rope.mscale) / mscale(rope.mscale_all_dim) if rope.mscale and rope.mscale_all_dim else mscale(1)
    low, high = dimension_that_turns(rope.beta_fast), dimension_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    width = high - low or 0.001
    interpolated_share = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    turns = rope.theta**exponents
    frequencies = 1.0 / (rope.factor * turns) * interpolated_share + 1.0 / turns * (1 - interpolated_share)
    return frequencies, scale


def _longrope(rope: RopeConfig, max_context: int, exponents: Tensor) -> tuple[Tensor, float]:
    scale = rope.attention_factor
    if scale is None:
        stretched = rope.factor > 1
        scale = math.sqrt(1 + math.log(rope.factor) / math.log(rope.original_max_position)) if stretched else 1.0
    factors = rope.long_factor if max_context > rope.original_max_position else rope.short_factor
    return 1.0 / (torch.tensor(factors, dtype=torch.float32) * rope.theta**exponents), scale


def _llama3(rope: RopeConfig, plain: Tensor) -> Tensor:
    """Long wavelengths are interpolated, short ones kept, those between blended."""
    turns = rope.original_max_position * plain / (2 * math.pi)
    kept_share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - kept_share) * plain / rope.factor + kept_share * plain
    blended = torch.where(turns < rope.low_freq_factor, plain / rope.factor, blended)
    return torch.where(turns > rope.high_freq_factor, plain, blended)


class Rotary:
    """Cosines and sines of positions."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype) -> None:
        self.frequencies, self.scale = rotary_frequencies(config)
        self.dtype = dtype

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """`positions` int64 [tokens] -> cosine and sine, [tokens, 1, head_dim / 2] each."""
        angles = (positions.float()[:, None] * self.frequencies)[:, None]
        return (angles.cos() * self.scale).to(self.dtype), (angles.sin() * self.scale).to(self.dtype)

    def between(self, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine, [tokens, head_dim / 2] each, of what turns `old` positions into `new` ones.

        Made of the very angles of both, so that what is turned twice is as if it had been turned once; in float64, or
        in float32 where the model has less.
        """
        angles = [(positions.float()[:, None] * self.frequencies).double() for positions in (old, new)]
        difference = angles[1] - angles[0]
        wide = torch.promote_types(self.dtype, torch.float32)
        return difference.cos().to(wide), difference.sin().to(wide)
