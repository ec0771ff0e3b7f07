"""The feed-forward layer of a mixture of experts (Shazeer et al., arXiv 1701.06538; as in Mixtral, arXiv 2401.04088):

    y[t] = sum over j < k of share[t, j] * down_e (SiLU(gate_e x[t]) * (up_e x[t])),   e = chosen[t, j]

The pairs (t, j) are sorted by expert on the device (`moe_sort`), then every expert multiplies its own rows
(`moe_products`): gate and up in one product with the activation in its epilogue, down in a second, whose rows are
weighted and go back to their pair's place; at last the k parts of each token are added, always in their order. The grid
is sized for the worst split among experts; programs without rows end at once. So no value is read by the host, and a
CUDA graph can hold it all.

Each number is one chain of matrix instructions of one kind over all its inputs, as in `matmul_invariant`, whatever the
tile: on one kind of chip a token's bits depend on its own row, experts and shares alone.

Tiling: [BLOCK_M, BLOCK_N] of a product a program, BLOCK_K inputs at a time. Tiles of rows go in groups of GROUP_M, all
columns of a group before the next: rows stay in the second-level cache, an expert's weights come from memory once.
Moves: the weights of the experts that are hit, once; rows of x k times, the hidden rows and the parts once out and in.
6 * hidden * inner operations a pair. Roofline: memory bandwidth (weights) while an expert has few rows, some hundred
on the larger chips; then the matrix units.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.moe_products import down_kernel, gate_up_kernel, sum_kernel
from engine.kernels.moe_sort import sort_by_expert
from engine.kernels.moe_tiles import TILES, shape_of
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, choose, current_gpu

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
STORED = (torch.int8, torch.float8_e4m3fn)
"""Weights of 8 bits: they need scales."""
FLOAT8 = 89
"""The least compute capability that can cast float8."""
SUM = Tile({"BLOCK": 1024}, num_warps=4, num_stages=1)


def moe(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    chosen: Tensor,
    shares: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """x [tokens, hidden] through the experts each token takes -> [tokens, hidden], x's dtype.

    x float32 (exact products, no tf32), float16 or bfloat16, rows contiguous. gate_up [experts, 2 * inner, hidden], the
    gate's rows before those of up; down [experts, hidden, inner]; both of x's dtype, or int8 or float8_e4m3fn (a GPU
    from sm_89 on) with gate_up_scale [experts, 2 * inner] and down_scale [experts, hidden] in float32: a weight is its
    output's scale times what is stored. chosen int32 or int64 [tokens, k]; shares float32 [tokens, k]. All contiguous.

    Sums in float32; the hidden rows and the k weighted parts of a token are rounded to x's dtype between. Takes
    tokens * k * (hidden + inner) numbers of that dtype as workspace. A token with an expert that isn't there gets NaN:
    values are on the device and nobody waits for them. Raises ValueError for other dtypes or shapes.
    """
    _check(x, gate_up, down, chosen, shares, gate_up_scale, down_scale, out)
    (tokens, hidden), (experts, _, inner), k = x.shape, down.shape, chosen.shape[1]
    out = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else out
    tile = tile or choose(TILES, _shape(x, gate_up, chosen))
    groups = sort_by_expert(chosen, experts, tile.constants["BLOCK_M"])
    of_hidden, parts = x.new_empty(tokens * k, inner), x.new_empty(tokens * k, hidden)
    n_tiles = len(groups.tiles)

    def even(inputs: int) -> bool:
        return inputs % tile.constants["BLOCK_K"] == 0

    def grid(outputs: int) -> tuple[int]:
        return (n_tiles * triton.cdiv(outputs, tile.constants["BLOCK_N"]),)

    first = x, gate_up, gate_up_scale, *groups, of_hidden, n_tiles, k, inner, hidden, x.stride(0)
    launch(gate_up_kernel, grid(2 * inner), *first, tile=tile, EVEN_K=even(hidden))
    second = of_hidden, down, down_scale, shares, *groups, parts, n_tiles, inner, hidden
    launch(down_kernel, grid(hidden), *second, tile=tile, EVEN_K=even(inner))
    blocks = triton.cdiv(hidden, SUM.constants["BLOCK"])
    launch(sum_kernel, (tokens * blocks,), parts, chosen, out, experts, hidden, out.stride(0), tile=SUM, K=k)
    return out


def moe_reference(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    chosen: Tensor,
    shares: Tensor,
    *,
    gate_up_scale: Tensor | None = None,
    down_scale: Tensor | None = None,
    out: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The same in plain PyTorch, expert by expert; in float64 when given float64."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = torch.zeros(x.shape, dtype=wide, device=x.device)
    for expert in range(len(gate_up)):
        token, place = (chosen == expert).nonzero(as_tuple=True)
        if not len(token):
            continue
        first, second = gate_up[expert].to(wide), down[expert].to(wide)
        if gate_up_scale is not None:
            first = first * gate_up_scale[expert].to(wide)[:, None]
        if down_scale is not None:
            second = second * down_scale[expert].to(wide)[:, None]
        gate, up = (x[token].to(wide) @ first.T).chunk(2, dim=1)
        part = (F.silu(gate) * up) @ second.T * shares[token, place].to(wide)[:, None]
        y.index_add_(0, token, part)
    y[((chosen < 0) | (chosen >= len(gate_up))).any(dim=1)] = torch.nan
    return y.to(x.dtype) if out is None else out.copy_(y)


def _check(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    chosen: Tensor,
    shares: Tensor,
    gate_up_scale: Tensor | None,
    down_scale: Tensor | None,
    out: Tensor | None,
) -> None:
    if x.dim() != 2 or x.dtype not in DTYPES:
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)}; it must be float32, float16 or bfloat16 [tokens, hidden] (weights may "
            "be of 8 bits, x not)"
        )
    if gate_up.dim() != 3 or down.dim() != 3 or down.shape != (len(gate_up), x.shape[1], gate_up.shape[1] // 2):
        raise ValueError(
            f"x is {list(x.shape)}, gate_up {list(gate_up.shape)}, down {list(down.shape)}; they must be "
            "[tokens, hidden], [experts, 2 * inner, hidden] and [experts, hidden, inner]"
        )
    if gate_up.shape[1] % 2 or gate_up.shape[2] != x.shape[1] or not gate_up.numel():
        raise ValueError(
            f"gate_up is {list(gate_up.shape)}; for x {list(x.shape)} it must be [experts, 2 * inner, {x.shape[1]}] "
            "and not empty: the gate's rows, then as many of the up projection"
        )
    if gate_up.dtype != down.dtype or gate_up.dtype not in (x.dtype, *STORED):
        raise ValueError(
            f"x is {x.dtype}, gate_up {gate_up.dtype}, down {down.dtype}; both weights must have x's dtype, or both "
            "be int8 or float8_e4m3fn"
        )
    if gate_up.dtype == torch.float8_e4m3fn and (gpu := current_gpu()).capability < FLOAT8:
        raise ValueError(f"{gpu.name or 'this GPU'} is sm_{gpu.capability}: float8 needs sm_{FLOAT8}; use int8")
    for name, scale, weight in (("gate_up_scale", gate_up_scale, gate_up), ("down_scale", down_scale, down)):
        _check_scale(name, scale, weight)
    if chosen.dim() != 2 or len(chosen) != len(x) or not chosen.shape[1]:
        raise ValueError(f"chosen is {list(chosen.shape)}; it must be [{len(x)}, k], at least one expert a token")
    if chosen.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"chosen is {chosen.dtype}; it must be int32 or int64")
    if shares.shape != chosen.shape or shares.dtype != torch.float32:
        raise ValueError(f"shares is {shares.dtype} {list(shares.shape)}; it must be float32 {list(chosen.shape)}")
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype):
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; it must be {x.dtype} {list(x.shape)}")
    for name, rows in (("x", x), ("out", out)):
        if rows is not None and rows.stride(1) != 1:
            raise ValueError(f"{name} has strides {rows.stride()}: rows must be contiguous; call .contiguous()")
    for name, whole in (("gate_up", gate_up), ("down", down), ("chosen", chosen), ("shares", shares)):
        if not whole.is_contiguous():
            raise ValueError(f"{name} has strides {whole.stride()}: it must be contiguous; call .contiguous()")


def _check_scale(name: str, scale: Tensor | None, weight: Tensor) -> None:
    if (scale is not None) != (weight.dtype in STORED):
        given = "is missing" if scale is None else "is given"
        raise ValueError(f"{name} {given} and the weights are {weight.dtype}: scales go with int8 and float8_e4m3fn")
    if scale is None:
        return
    if scale.shape != weight.shape[:2] or scale.dtype != torch.float32 or not scale.is_contiguous():
        raise ValueError(
            f"{name} is {scale.dtype} {list(scale.shape)} with strides {scale.stride()}; it must be float32 "
            f"{list(weight.shape[:2])}, contiguous"
        )


def _shape(x: Tensor, gate_up: Tensor, chosen: Tensor) -> Shape:
    experts, outputs, hidden = gate_up.shape
    return shape_of(chosen.numel(), experts, hidden, outputs // 2, _name(x.dtype), _name(gate_up.dtype))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def work(
    tokens: int,
    k: int,
    experts: int,
    hidden: int,
    inner: int,
    *,
    hit: int | None = None,
    bytes_per_number: int = 2,
    bytes_per_weight: float | None = None,
) -> Work:
    """The weights of `hit` experts move once (None: as many as the pairs can reach), x and y once; what lies between
    the products needn't leave the chip."""
    hit = min(experts, tokens * k) if hit is None else hit
    of_weight = bytes_per_number if bytes_per_weight is None else bytes_per_weight
    weights = int(of_weight * hit * 3 * hidden * inner)
    return Work(weights + bytes_per_number * 2 * tokens * hidden, 6 * tokens * k * hidden * inner)


def cases() -> Iterator[Case]:
    """Mixtral 8x7B for few and many tokens in each dtype, many small experts, and sizes that no tile divides."""
    bf16, mixtral = torch.bfloat16, (2, 8, 4096, 14336)
    for tokens in (1, 8, 32, 64, 256, 4096):
        yield _case(tokens, *mixtral, bf16, bf16)
    for tokens in (32, 4096):
        yield _case(tokens, *mixtral, torch.float16, torch.float16)
        for stored in STORED:
            yield _case(tokens, *mixtral, bf16, stored)
    yield _case(1, *mixtral, bf16, torch.int8)
    yield _case(256, *mixtral, bf16, torch.int8)
    yield _case(32, *mixtral, torch.float32, torch.float32)
    for tokens in (32, 4096):
        yield _case(tokens, 8, 128, 2048, 768, bf16, bf16)
    yield _case(50, 3, 5, 1000, 1001, bf16, bf16)


def _case(tokens: int, k: int, experts: int, hidden: int, inner: int, dtype: torch.dtype, stored: torch.dtype) -> Case:
    def make(device: torch.device) -> Call:
        x = torch.randn(tokens, hidden, dtype=dtype, device=device)
        sizes = (2 * inner, hidden), (hidden, inner)
        gate_up, down = (_weights((experts, *size), stored, device) for size in sizes)
        scales: list[Tensor | None] = [None, None]
        if stored in STORED:
            scales = [torch.full((experts, outputs), 0.01 / inputs**0.5, device=device) for outputs, inputs in sizes]
        chosen = torch.rand(tokens, experts, device=device).topk(k, dim=1).indices
        shares = torch.rand(tokens, k, device=device)
        out = torch.empty_like(x)
        return lambda tile: moe(
            x, gate_up, down, chosen, shares, gate_up_scale=scales[0], down_scale=scales[1], out=out, tile=tile
        )

    shape = shape_of(tokens * k, experts, hidden, inner, _name(dtype), _name(stored))
    label = f"tokens={tokens} k={k} experts={experts} hidden={hidden} inner={inner} {_name(dtype)}"
    label += f" {_name(stored)}-weights" if stored in STORED else ""
    return Case(label, TILES, shape, make, dtype != torch.float32, FLOAT8 if stored == torch.float8_e4m3fn else 80)


def _weights(shape: tuple[int, int, int], stored: torch.dtype, device: torch.device) -> Tensor:
    """Random, an expert at a time: Mixtral's are large."""
    weights = torch.empty(shape, dtype=stored, device=device)
    for expert in weights:
        if stored == torch.int8:
            expert.random_(-127, 128)
        elif stored in STORED:
            expert.copy_(50 * torch.randn(shape[1:], device=device))
        else:
            expert.normal_(std=shape[2] ** -0.5)
    return weights
