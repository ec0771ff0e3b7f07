"""Weights in 8 bits: w[j, i] is kept as stored[j, i] * scale[j], one scale for all that goes into an output.

    int8   scale[j] = max |w[j]| / 127, stored = round(w / scale):         |error| <= scale / 2
    fp8    scale[j] = max |w[j]| / 448, stored = float8_e4m3(w / scale):   |error| <= max(|w| / 16, scale / 1024)

Symmetric, so that y = (x stored^T) * scale + b needs no zero points, and the scale leaves the sum (LLM.int8(), arXiv
2208.07339, section 2.1; FP8 formats, arXiv 2209.05433). What is computed in keeps its dtype: only weights are stored in
8 bits.

Matrices of layers are quantised, experts included, and the head; embeddings (and a head tied to them), norms, biases
and routers are not: they are small, or decide much by little.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from engine.models.config import ModelError

KINDS: dict[str, torch.dtype] = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
SCALE_BYTES = 4
_MATRICES = (
    *("_proj.weight", "lm_head.weight"),
    *(".w1.weight", ".w2.weight", ".w3.weight", ".experts.gate_up_proj", ".experts.down_proj"),  # of experts
)
_PART = 1 << 22
"""Numbers that are rounded at a time, so that what lies between takes little memory beside the weight."""


class Quantised(NamedTuple):
    """A weight of 8 bits a number."""

    stored: Tensor
    """int8 or float8_e4m3fn [..., outputs, inputs]"""
    scale: Tensor
    """float32 [..., outputs]"""


def stored_dtype(kind: str) -> torch.dtype:
    """Of `int8` or `fp8`. Raises ModelError for others."""
    if kind not in KINDS:
        raise ModelError(
            f"weights={kind!r} isn't supported; available: {', '.join(KINDS)}, or null for the dtype's own"
        )
    return KINDS[kind]


def is_quantised(name: str) -> bool:
    """Whether the tensor of that (Hugging Face) name is one of those that are stored in 8 bits."""
    return name.endswith(_MATRICES)


def quantise(weight: Tensor, kind: str) -> Quantised:
    """weight: floating [..., outputs, inputs], on any device, from which it takes as much room again and little more.

    kind: `int8` or `fp8`. Raises ModelError for other kinds and for numbers that aren't finite: they have no scale.
    """
    dtype = stored_dtype(kind)
    inputs = weight.shape[-1]
    rows = weight.reshape(-1, inputs)
    stored = torch.empty(rows.shape, dtype=dtype, device=weight.device)
    scale = torch.empty(len(rows), dtype=torch.float32, device=weight.device)
    step = max(1, _PART // max(1, inputs))
    for at in range(0, len(rows), step):
        part = slice(at, at + step)
        w = rows[part].float()
        largest = w.abs().amax(1)
        # A row of zeros may have any scale but zero; one of all but zeros is lost with less than that.
        scale[part] = (largest / LARGEST[dtype]).clamp_(min=torch.finfo(torch.float32).tiny)
        w = (w / scale[part, None]).clamp_(-LARGEST[dtype], LARGEST[dtype])
        stored[part] = w.round_().to(dtype) if dtype == torch.int8 else w.to(dtype)
    if not bool(torch.isfinite(scale).all()):
        raise ModelError(f"a weight of {list(weight.shape)} holds numbers that aren't finite: it can't be {kind}")
    return Quantised(stored.view(weight.shape), scale.view(weight.shape[:-1]))


def dequantised(weight: Quantised, dtype: torch.dtype) -> Tensor:
    """scale * stored in `dtype`: what the model computes with."""
    return weight.stored.to(dtype) * weight.scale.to(dtype).unsqueeze(-1)


def weight_bytes(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, kind: str | None) -> int:
    """Bytes of all tensors of a model, by name and shape: with `kind`, matrices in 8 bits and float32 scales."""
    if kind is None:
        return dtype.itemsize * sum(map(prod, shapes.values()))
    stored = stored_dtype(kind).itemsize
    return sum(
        stored * prod(shape) + SCALE_BYTES * prod(shape[:-1]) if is_quantised(name) else dtype.itemsize * prod(shape)
        for name, shape in shapes.items()
    )
