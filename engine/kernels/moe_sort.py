"""Pairs of a token and an expert, brought into the experts' order on the device: a counting sort that nobody waits for.

    order = the pairs' numbers (token * k + place among its k), by expert, and in their own order within each
    tiles = where each expert's pairs begin and end in that order, cut into tiles of `rows`

How many tiles there are depends on values that only the device knows, so there is room for the most there can be, and
tiles without work are marked. No atomics: the order is the same every time.
Tiling: up to ALONE pairs one program counts and places them. More are dealt out in stretches to at most PROGRAMS
programs, which count theirs in one launch and place them in a second, each adding up what those before it counted.
Moves: the choices twice, the order once. Roofline: the latency of one or two launches.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.launch import launch
from engine.kernels.moe_tiles import most_tiles
from engine.kernels.tiles import Tile

ONE_HOT = 4096
"""Numbers of a piece's table, pairs by experts."""
ALONE = 2048
PROGRAMS = 64


class Groups(NamedTuple):
    """Pairs by expert. An expert that isn't there has no place in them."""

    order: Tensor
    """int32 [pairs]."""
    tiles: Tensor
    """int32 [most tiles, 3]: expert (-1: no work), first and end of its pairs from this tile on, in `order`."""


@triton.jit(do_not_specialize=["pairs", "stretch"])
def count_kernel(chosen, counts, pairs, experts, stretch, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    first = tl.program_id(0) * stretch
    of_expert = count(chosen, first, tl.minimum(first + stretch, pairs), experts, EXPERTS, BLOCK)
    tl.store(counts + tl.program_id(0) * EXPERTS + tl.arange(0, EXPERTS), of_expert)


@triton.jit(do_not_specialize=["pairs", "stretch", "n_tiles"])
def place_kernel(
    chosen,
    counts,
    order,
    tiles,
    pairs,
    experts,
    stretch,
    n_tiles,
    EXPERTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
    ROWS: tl.constexpr,
):
    expert = tl.arange(0, EXPERTS)
    if counts is None:
        of_expert = count(chosen, 0, pairs, experts, EXPERTS, BLOCK)
        before = tl.zeros((EXPERTS,), tl.int32)
    else:
        program = tl.arange(0, PROGRAMS)[:, None]
        counted = tl.load(
            counts + program * EXPERTS + expert[None, :], mask=program < tl.num_programs(0), other=0
        )  # [programs, experts]
        of_expert = tl.sum(counted, axis=0)
        before = tl.sum(tl.where(program < tl.program_id(0), counted, 0), axis=0)
    ends = tl.cumsum(of_expert, axis=0)
    starts = ends - of_expert

    first = tl.program_id(0) * stretch
    end = tl.minimum(first + stretch, pairs)
    at = starts + before
    for piece in range(first, end, BLOCK):
        pair = piece + tl.arange(0, BLOCK)
        takes = takes_of(chosen, pair, end, experts, EXPERTS)
        slots = at[None, :] + tl.cumsum(takes, axis=0) - 1
        slot = tl.sum(takes * slots, axis=1)
        tl.store(order + slot, pair, mask=tl.sum(takes, axis=1) > 0)
        at += tl.sum(takes, axis=0)

    in_tiles = (of_expert + ROWS - 1) // ROWS
    tile_ends = tl.cumsum(in_tiles, axis=0)
    all_tiles = tl.sum(in_tiles, axis=0)
    for piece in range(tl.program_id(0) * BLOCK, n_tiles, tl.num_programs(0) * BLOCK):
        tile = piece + tl.arange(0, BLOCK)
        owner = tl.sum((tile[:, None] >= tile_ends[None, :]).to(tl.int32), axis=1)
        owns = owner[:, None] == expert[None, :]
        into = (tile[:, None] - (tile_ends - in_tiles)[None, :]) * ROWS
        to = tiles + 3 * tile
        exists = tile < n_tiles
        tl.store(to, tl.where(tile < all_tiles, owner, -1), mask=exists)
        tl.store(to + 1, tl.sum(tl.where(owns, starts[None, :] + into, 0), axis=1), mask=exists)
        tl.store(to + 2, tl.sum(tl.where(owns, ends[None, :], 0), axis=1), mask=exists)


@triton.jit
def count(chosen, first, end, experts, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):
    """Pairs of each expert from `first` to `end`."""
    of_expert = tl.zeros((EXPERTS,), tl.int32)
    for piece in range(first, end, BLOCK):
        of_expert += tl.sum(takes_of(chosen, piece + tl.arange(0, BLOCK), end, experts, EXPERTS), axis=0)
    return of_expert


@triton.jit
def takes_of(chosen, pair, end, experts, EXPERTS: tl.constexpr):
    """[pairs, experts]: 1 where the pair's expert is that one."""
    taken = tl.load(chosen + pair, mask=pair < end, other=-1)
    expert = tl.arange(0, EXPERTS)
    return ((taken[:, None] == expert[None, :]) & (expert < experts)[None, :]).to(tl.int32)


def sort_by_expert(chosen: Tensor, experts: int, rows: int) -> Groups:
    """chosen [tokens, k] int32 or int64, contiguous -> its pairs by expert, in tiles of `rows`."""
    pairs, padded = chosen.numel(), triton.next_power_of_2(experts)
    order = torch.empty(pairs, dtype=torch.int32, device=chosen.device)
    n_tiles = most_tiles(pairs, experts, rows)
    tiles = torch.empty(n_tiles, 3, dtype=torch.int32, device=chosen.device)
    block = max(16, min(ONE_HOT // padded, triton.next_power_of_2(max(pairs, 1))))
    tile = Tile({"EXPERTS": padded, "BLOCK": block}, num_warps=8 if block * padded >= 2048 else 4, num_stages=1)
    counts, stretch, programs = None, pairs, min(pairs, 1)
    if pairs > ALONE:
        stretch = triton.cdiv(triton.cdiv(pairs, PROGRAMS), block) * block
        programs = triton.cdiv(pairs, stretch)
        counts = torch.empty(programs, padded, dtype=torch.int32, device=chosen.device)
        launch(count_kernel, (programs,), chosen, counts, pairs, experts, stretch, tile=tile)
    arguments = chosen, counts, order, tiles, pairs, experts, stretch, n_tiles
    launch(place_kernel, (programs,), *arguments, tile=tile, PROGRAMS=PROGRAMS, ROWS=rows)
    return Groups(order, tiles)
