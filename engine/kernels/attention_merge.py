"""Merges attention over disjoint sets of keys into attention over all of them (FlashAttention, arXiv 2205.14135, 3.1).

    out = sum_p e^(lse_p - lse) out_p,   lse = log sum_p e^lse_p,   lse_p = log sum_{j in p} e^score_j

The pieces of a query come from two places: ranges of its own keys (split-KV decoding) and the prefix that it shares
with others. A piece with lse = -inf saw no key and weighs nothing, whatever its `out` holds.

Tiling: one program takes one query and head, BLOCK_P pieces at a time, so that their loads are in flight together.
Moves: each piece once (head_dim + 1 numbers of 4 bytes), `out` once; no matrix products.
Roofline: memory bandwidth, and the launch itself: the pieces are few and fresh in the second-level cache.
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


class Parts(NamedTuple):
    """Attention of each query over parts of its keys. Which parts of a query hold something is said elsewhere."""

    out: Tensor
    """float32 [max_parts, queries, heads, head_dim]: normalised within the part."""
    lse: Tensor
    """float32 [max_parts, queries, heads]: natural logarithm of the part's sum of exponentials."""


class Splits(NamedTuple):
    """Attention of each query over ranges of its own keys: pieces first[i] .. first[i] + n[i] are query i's."""

    out: Tensor
    """float32 [pieces, heads, head_dim]: normalised within the piece."""
    lse: Tensor
    """float32 [pieces, heads]: natural logarithm of the piece's sum of exponentials."""
    first: Tensor
    """int32 [queries]"""
    n: Tensor
    """int32 [queries]"""


@triton.jit
def _fold(
    acc,
    top,
    total,
    out_ptr,
    lse_ptr,
    n_pieces,
    stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Takes n_pieces more into the running (acc [BLOCK_D], top, total); a piece lies `stride` heads after the last."""
    column = tl.arange(0, BLOCK_D)
    for start in range(0, n_pieces, BLOCK_P):
        piece = start + tl.arange(0, BLOCK_P)
        inside = piece < n_pieces
        at = piece.to(tl.int64) * stride
        lse = tl.load(lse_ptr + at, mask=inside, other=float("-inf"))
        out = tl.load(
            out_ptr + at[:, None] * HEAD_DIM + column[None, :],
            mask=inside[:, None] & (column < HEAD_DIM)[None, :],
            other=0.0,
        )
        higher = tl.maximum(top, tl.max(lse, 0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(lse - base)
        out = tl.where((weight > 0.0)[:, None], out, 0.0)
        shrink = tl.exp(top - base)
        acc = acc * shrink + tl.sum(out * weight[:, None], 0)
        total = total * shrink + tl.sum(weight, 0)
        top = higher
    return acc, top, total


@triton.jit
def attention_merge_kernel(
    out,
    split_out,
    split_lse,
    split_first,
    split_n,
    part_out,
    part_lse,
    n_parts,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HAS_SPLITS: tl.constexpr,
    HAS_PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    query = tl.program_id(0) // HEADS
    head = tl.program_id(0) % HEADS
    splits, parts = 0, 0
    if HAS_SPLITS:
        splits = tl.load(split_n + query)
    if HAS_PARTS:
        parts = tl.load(n_parts + query)
    if splits + parts > 0:
        acc = tl.zeros([BLOCK_D], tl.float32)
        top = float("-inf")
        total = 0.0
        if HAS_SPLITS:
            at = tl.load(split_first + query).to(tl.int64) * HEADS + head
            acc, top, total = _fold(
                acc, top, total, split_out + at * HEAD_DIM, split_lse + at, splits, HEADS, HEAD_DIM, BLOCK_D, BLOCK_P
            )
        if HAS_PARTS:
            at = query.to(tl.int64) * HEADS + head
            from_part_to_part = tl.num_programs(0).to(tl.int64)  # queries * heads
            acc, top, total = _fold(
                acc,
                top,
                total,
                part_out + at * HEAD_DIM,
                part_lse + at,
                parts,
                from_part_to_part,
                HEAD_DIM,
                BLOCK_D,
                BLOCK_P,
            )
        acc = acc / tl.where(total > 0.0, total, 1.0)
        column = tl.arange(0, BLOCK_D)
        to = (query.to(tl.int64) * HEADS + head) * HEAD_DIM + column
        tl.store(out + to, acc.to(out.dtype.element_ty), mask=column < HEAD_DIM)


def attention_merge(
    parts: Parts | None,
    n_parts: Tensor | None,
    *,
    out: Tensor,
    splits: Splits | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """Merges each query's parts 0 .. n_parts[query] - 1 and its splits into out [queries, heads, head_dim].

    n_parts: int32 [queries], goes with `parts`. A query with nothing to merge keeps what `out` holds. A query whose
    pieces all saw no key gets zeros. out: float32, float16 or bfloat16, contiguous.
    Raises ValueError for shapes or types that don't belong together.
    """
    _check(parts, n_parts, out, splits)
    n_queries, heads, head_dim = out.shape
    tile = tile or choose(TILES, _shape(out))
    launch(
        attention_merge_kernel,
        (n_queries * heads,),
        out,
        None if splits is None else splits.out,
        None if splits is None else splits.lse,
        None if splits is None else splits.first,
        None if splits is None else splits.n,
        None if parts is None else parts.out,
        None if parts is None else parts.lse,
        n_parts,
        tile=tile,
        HEADS=heads,
        HEAD_DIM=head_dim,
        BLOCK_D=triton.next_power_of_2(head_dim),
        HAS_SPLITS=splits is not None,
        HAS_PARTS=parts is not None,
    )
    return out


def attention_merge_reference(
    parts: Parts | None,
    n_parts: Tensor | None,
    *,
    out: Tensor,
    splits: Splits | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The same in plain PyTorch, in float64."""
    for query in range(out.shape[0]):
        outs, lses = [], []
        if splits is not None:
            pieces = slice(int(splits.first[query]), int(splits.first[query]) + int(splits.n[query]))
            outs.append(splits.out[pieces].double())
            lses.append(splits.lse[pieces].double())
        if parts is not None and n_parts is not None:
            outs.append(parts.out[: int(n_parts[query]), query].double())
            lses.append(parts.lse[: int(n_parts[query]), query].double())
        piece, lse = torch.cat(outs), torch.cat(lses)  # [pieces, heads, head_dim], [pieces, heads]
        if len(piece):
            seen = (lse > -torch.inf).unsqueeze(-1)
            weights = lse.exp() / lse.exp().sum(0).clamp_min(1e-300)
            out[query] = (weights.unsqueeze(-1) * piece.where(seen, 0.0)).sum(0).to(out.dtype)
    return out


def work(n_queries: int, heads: int, head_dim: int, n_pieces: int, out_bytes: int = 2) -> Work:
    """n_pieces: splits and parts of all queries together; out_bytes: of a number of `out`."""
    return Work(heads * (n_pieces * 4 * (head_dim + 1) + n_queries * head_dim * out_bytes))


def _check(parts: Parts | None, n_parts: Tensor | None, out: Tensor, splits: Splits | None) -> None:
    if out.dim() != 3 or not out.is_contiguous():
        raise ValueError(f"out must be contiguous [queries, heads, head_dim], not {list(out.shape)}")
    if (parts is None) != (n_parts is None):
        raise ValueError("parts and n_parts go together: give both or neither")
    if parts is None and splits is None:
        raise ValueError("nothing to merge: give parts, splits or both")
    if parts is not None and n_parts is not None:
        if parts.out.shape[1:] != out.shape or parts.lse.shape != parts.out.shape[:3]:
            raise ValueError(
                f"parts are {list(parts.out.shape)} and {list(parts.lse.shape)}: they must be [max_parts, "
                f"*{list(out.shape)}] and the same without head_dim"
            )
        if n_parts.shape != out.shape[:1] or n_parts.dtype != torch.int32:
            raise ValueError(f"n_parts is {n_parts.dtype} {list(n_parts.shape)}: it must be int32 [{out.shape[0]}]")
        if not parts.out.is_contiguous() or not parts.lse.is_contiguous():
            raise ValueError("parts must be contiguous")
    if splits is not None and (
        splits.out.shape[1:] != out.shape[1:]
        or splits.lse.shape != splits.out.shape[:2]
        or splits.first.shape != out.shape[:1]
        or splits.n.shape != out.shape[:1]
    ):
        raise ValueError(f"splits of {list(splits.out.shape)} don't fit out {list(out.shape)}")


def _shape(out: Tensor) -> Shape:
    return {"head_dim": out.shape[2], "dtype": str(out.dtype).removeprefix("torch.")}


def _default(capability: int, shape: Shape) -> Tile:
    return Tile({"BLOCK_P": 16 if int(shape["head_dim"]) <= 128 else 8}, num_warps=4, num_stages=1)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    return [Tile({"BLOCK_P": pieces}, num_warps=warps, num_stages=1) for pieces in (8, 16, 32) for warps in (1, 2, 4)]


TILES = Tiles("attention_merge", _default, _candidates)


def cases() -> Iterator[Case]:
    """A decode batch cut in splits, a shared prefix in parts, both."""
    for head_dim in (64, 80, 128, 256):
        yield _case(head_dim, torch.bfloat16, n_splits=4, n_parts=8)
    yield _case(128, torch.bfloat16, n_splits=32, n_parts=0)
    yield _case(128, torch.float16, n_splits=0, n_parts=8)
    yield _case(128, torch.float32, n_splits=4, n_parts=0)


def _case(head_dim: int, dtype: torch.dtype, n_splits: int, n_parts: int, queries: int = 64, heads: int = 32) -> Case:
    def make(device: torch.device) -> Call:
        splits = None
        if n_splits:
            splits = Splits(
                torch.randn(n_splits * queries, heads, head_dim, device=device),
                torch.randn(n_splits * queries, heads, device=device),
                torch.arange(0, n_splits * queries, n_splits, dtype=torch.int32, device=device),
                torch.full((queries,), n_splits, dtype=torch.int32, device=device),
            )
        parts, counts = None, None
        if n_parts:
            parts = Parts(
                torch.randn(n_parts, queries, heads, head_dim, device=device),
                torch.randn(n_parts, queries, heads, device=device),
            )
            counts = torch.full((queries,), n_parts, dtype=torch.int32, device=device)
        out = torch.empty(queries, heads, head_dim, dtype=dtype, device=device)
        return lambda tile: attention_merge(parts, counts, out=out, splits=splits, tile=tile)

    name = str(dtype).removeprefix("torch.")
    label = f"head_dim={head_dim} {name} splits={n_splits} parts={n_parts}"
    return Case(label, TILES, {"head_dim": head_dim, "dtype": name}, make, matrix=False)
