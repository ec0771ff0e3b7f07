"""K and V of some slots go to other slots, for tokens that stand at later positions there.

    k' = k turned by the angle between the two positions, in the two-halves layout:
         a' = a cos - b sin,  b' = b cos + a sin       (RoFormer, arXiv 2104.09864, eq. 34; rotations compose)
    v' = v

A quantised pool: K is widened, turned and quantised anew (as `rope_and_store` does it), V keeps its bits and scale.

Plain PyTorch on every device: it runs once for each branch that is joined, over all layers at once. Moves: K and V of
the copied tokens of all layers, read once and written once, with a float32 copy of K in between. Roofline: memory
bandwidth.
"""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.paged import LARGEST


def copy_and_turn(
    k: Tensor,
    v: Tensor,
    source: Tensor,
    target: Tensor,
    turn: tuple[Tensor, Tensor] | None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """k, v [layers, kv heads, slots, head_dim] are written at `target`; source, target int64 [tokens], disjoint.

    turn: cosines and sines of the angles [tokens, head_dim / 2], float32 or float64; None: no turn, bit for bit.
    k_scale, v_scale: float32 [layers, kv heads, slots] of a quantised pool.
    """
    _move(v, source, target)
    if v_scale is not None:
        _move(v_scale, source, target)
    if turn is None:
        _move(k, source, target)
        if k_scale is not None:
            _move(k_scale, source, target)
        return
    cos, sin = turn
    found = _bits(k).index_select(2, source).view(k.dtype).to(cos.dtype)
    if k_scale is not None:
        found *= k_scale.index_select(2, source)[..., None]
    a, b = found.chunk(2, dim=-1)
    turned = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
    if k_scale is not None:
        largest = LARGEST[k.dtype]
        scale = turned.abs().amax(dim=-1) / largest
        k_scale.index_copy_(2, target, scale.to(k_scale.dtype))
        turned = (turned / torch.where(scale > 0, scale, 1)[..., None]).clamp(-largest, largest)
        turned = turned.round() if k.dtype == torch.int8 else turned
    _bits(k).index_copy_(2, target, _bits(turned.to(k.dtype)))


def _move(pool: Tensor, source: Tensor, target: Tensor) -> None:
    bits = _bits(pool)
    bits.index_copy_(2, target, bits.index_select(2, source))


def _bits(x: Tensor) -> Tensor:
    """Eight-bit floats as bytes, which every device can index."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x
