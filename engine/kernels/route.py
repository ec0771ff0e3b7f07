"""Which experts a token takes, and with what shares (the router of Mixtral, Jiang et al., arXiv 2401.04088):

    share[t, j] = p[t, e_j] / (p[t, e_0] + ... + p[t, e_(k-1)]),   p = softmax of all logits, e_j its j-th largest

The softmax's own sum cancels, so that exp(logit - largest) over the k taken is all there is to add up, in float32. What
is larger is told by the logits themselves: where probabilities round to the same number, logits may still differ. Equal
logits go to the lower expert.

Tiling: BLOCK_M tokens with all their experts a program. Moves: the logits once in, k experts and shares out. Roofline:
the latency of one launch, instead of those of a softmax, a top-k, a sum and a division.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Routing(NamedTuple):
    chosen: Tensor
    """int32 [tokens, k], the largest share's expert first."""
    shares: Tensor
    """float32 [tokens, k]; a token's sum to 1."""


@triton.jit(do_not_specialize=["tokens"])
def route_kernel(
    logits,
    chosen,
    shares,
    tokens,
    experts,
    logits_stride,
    K: tl.constexpr,
    PLACES: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    expert = tl.arange(0, EXPERTS)[None, :]
    place = tl.arange(0, PLACES)[None, :]
    free = (token < tokens)[:, None] & (expert < experts)
    at = logits + token[:, None].to(tl.int64) * logits_stride + expert
    x = tl.load(at, mask=free, other=float("-inf")).to(tl.float32)
    isnt_number = tl.max((x != x).to(tl.int32), axis=1) > 0
    largest = tl.max(x, axis=1)
    taken = tl.zeros((BLOCK_M, PLACES), tl.int32)
    weights = tl.zeros((BLOCK_M, PLACES), tl.float32)
    for j in tl.static_range(K):
        best = tl.max(tl.where(free, x, float("-inf")), axis=1)
        # The last expert where nothing is as large as the largest: its shares aren't numbers, but it exists.
        first = tl.min(tl.where(free & (x == best[:, None]), expert, experts - 1), axis=1)
        free = free & (expert != first[:, None])
        taken = tl.where(place == j, first[:, None], taken)
        weights = tl.where(place == j, tl.exp(best - largest)[:, None], weights)
    y = weights / tl.sum(weights, axis=1)[:, None]
    y = tl.where(isnt_number[:, None], float("nan"), y)
    inside = (token < tokens)[:, None] & (place < K)
    to = token[:, None].to(tl.int64) * K + place
    tl.store(chosen + to, taken, mask=inside)
    tl.store(shares + to, y, mask=inside)


def route(logits: Tensor, k: int, *, tile: Tile | None = None) -> Routing:
    """logits [tokens, experts], float32, float16 or bfloat16, rows contiguous -> the k experts of each token.

    A token whose logits hold NaN, or infinity as the largest, gets NaN for its shares, and experts that exist.
    Raises ValueError for other dtypes or shapes, or more experts a token than there are.
    """
    _check(logits, k)
    tokens, experts = logits.shape
    chosen = torch.empty(tokens, k, dtype=torch.int32, device=logits.device)
    shares = torch.empty(tokens, k, dtype=torch.float32, device=logits.device)
    tile = tile or choose(TILES, _shape(experts, k, logits.dtype))
    grid = (triton.cdiv(tokens, tile.constants["BLOCK_M"]),)
    constants = {"K": k, "PLACES": triton.next_power_of_2(k), "EXPERTS": triton.next_power_of_2(experts)}
    arguments = logits, chosen, shares, tokens, experts, logits.stride(0)
    launch(route_kernel, grid, *arguments, tile=tile, **constants)
    return Routing(chosen, shares)


def route_reference(logits: Tensor, k: int, *, tile: Tile | None = None) -> Routing:
    """The same in plain PyTorch; shares in float64 when given float64."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    chosen = wide.sort(dim=1, descending=True, stable=True).indices[:, :k]
    shares = torch.softmax(wide, dim=1).gather(1, chosen)
    return Routing(chosen.to(torch.int32), shares / shares.sum(dim=1, keepdim=True))


def _check(logits: Tensor, k: int) -> None:
    if logits.dim() != 2 or logits.dtype not in DTYPES or logits.stride(1) != 1:
        raise ValueError(
            f"logits are {logits.dtype} {list(logits.shape)} with strides {logits.stride()}; they must be float32, "
            "float16 or bfloat16 [tokens, experts], rows contiguous"
        )
    if not 1 <= k <= logits.shape[1]:
        raise ValueError(f"k is {k}; a token takes at least 1 of the {logits.shape[1]} experts and at most all")


def _shape(experts: int, k: int, dtype: torch.dtype) -> Shape:
    return {"experts": experts, "k": k, "dtype": str(dtype).removeprefix("torch.")}


def _default(capability: int, shape: Shape) -> Tile:
    return _candidates(capability, shape)[0]


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    experts = triton.next_power_of_2(int(shape["experts"]))
    return [Tile({"BLOCK_M": max(1, rows // experts)}, num_warps=warps, num_stages=1) for rows, warps in _SIZES]


_SIZES = ((256, 1), (1024, 4), (2048, 4))
"""Logits of a program, and its warps."""
TILES = Tiles("route", _default, _candidates)


def work(tokens: int, experts: int, k: int, *, bytes_per_number: int = 2) -> Work:
    """The logits once, an expert and a share of four bytes each for every place."""
    return Work(tokens * (bytes_per_number * experts + 8 * k))


def cases() -> Iterator[Case]:
    """Mixtral's router for few and many tokens, and one of many small experts."""
    for tokens, experts, k, dtype in (
        (32, 8, 2, torch.bfloat16),
        (4096, 8, 2, torch.float16),
        (4096, 8, 2, torch.float32),
        (4096, 60, 4, torch.bfloat16),
        (4096, 128, 8, torch.bfloat16),
    ):
        yield _case(tokens, experts, k, dtype)


def _case(tokens: int, experts: int, k: int, dtype: torch.dtype) -> Case:
    def make(device: torch.device) -> Call:
        logits = torch.randn(tokens, experts, dtype=dtype, device=device)
        return lambda tile: route(logits, k, tile=tile)

    shape = _shape(experts, k, dtype)
    return Case(f"tokens={tokens} experts={experts} k={k} {shape['dtype']}", TILES, shape, make, matrix=False)
