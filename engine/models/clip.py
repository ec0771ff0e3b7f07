"""CLIP's vision tower (Radford et al., arXiv 2103.00020): a picture cut into patches, each a token of a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.models.vision_config import VisionConfig


class Affine(NamedTuple):
    """x W^T + b, or the scale and shift of a norm."""

    weight: Tensor
    bias: Tensor | None


class Layer(NamedTuple):
    norm1: Affine
    q: Affine
    k: Affine
    v: Affine
    out: Affine
    norm2: Affine
    fc1: Affine
    fc2: Affine


@dataclass(frozen=True)
class VisionTower:
    """`load_vision` makes it."""

    config: VisionConfig
    class_embedding: Tensor
    """[hidden]"""
    patch_embedding: Tensor
    """[hidden, 3, patch, patch]"""
    position_embedding: Tensor
    """[1 + patches, hidden]"""
    pre_norm: Affine
    layers: Sequence[Layer]
    """Those up to the one whose output is wanted."""

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> Tensor:
        """pixels [images, 3, size, size], normalised -> [images, tokens, hidden] in the tower's dtype."""
        c = self.config
        patches = F.conv2d(pixels.to(self.patch_embedding), self.patch_embedding, stride=c.patch_size)
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.position_embedding
        x = _norm(x, self.pre_norm, c.norm_eps)
        for layer in self.layers:
            h = _norm(x, layer.norm1, c.norm_eps)
            q, k, v = (self._heads(_affine(h, part)) for part in (layer.q, layer.k, layer.v))
            attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
            x = x + _affine(attended, layer.out)
            h = _affine(_norm(x, layer.norm2, c.norm_eps), layer.fc1)
            x = x + _affine(ACTIVATIONS[c.act](h), layer.fc2)
        return x if c.keeps_class_token else x[:, 1:]

    def _heads(self, x: Tensor) -> Tensor:
        """[images, tokens, hidden] -> [images, heads, tokens, head_dim]"""
        return x.unflatten(-1, (self.config.n_heads, -1)).transpose(1, 2)


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def _affine(x: Tensor, part: Affine) -> Tensor:
    return F.linear(x, part.weight, part.bias)


def _norm(x: Tensor, part: Affine, eps: float) -> Tensor:
    return F.layer_norm(x, part.weight.shape, part.weight, part.bias, eps)
