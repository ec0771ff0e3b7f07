"""The gate of a SwiGLU block (Shazeer, arXiv 2002.05202): y = SiLU(gate) * up, SiLU(g) = g / (1 + exp(-g)).

Tiling: one program takes a stretch of BLOCK columns of one token, 8 numbers of gate and of up a thread.
Moves: gate and up once each, y once; about 6 operations a number, in float32, none of them matrix products.
Roofline: memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def silu_mul_kernel(gate_up, out, inner, gate_up_stride, out_stride, BLOCK: tl.constexpr):
    blocks = tl.cdiv(inner, BLOCK)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = at < inner
    start = gate_up + token * gate_up_stride
    gate = tl.load(start + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(start + inner + at, mask=inside, other=0.0).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(out + token * out_stride + at, y.to(out.dtype.element_ty), mask=inside)


def silu_mul(gate_up: Tensor, *, out: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """gate_up [tokens, 2 * inner], the gate before the up projection -> SiLU(gate) * up [tokens, inner], same dtype.

    float32, float16 or bfloat16, rows contiguous; computed in float32 and rounded once.
    Raises ValueError for other dtypes or shapes.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2 or gate_up.dtype not in DTYPES:
        raise ValueError(
            f"gate_up is {gate_up.dtype} {list(gate_up.shape)}; it must be float32, float16 or bfloat16 "
            "[tokens, 2 * inner]: the gate's columns, then as many of the up projection"
        )
    tokens, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, inner, dtype=gate_up.dtype, device=gate_up.device) if out is None else out
    if out.shape != (tokens, inner) or out.dtype != gate_up.dtype:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; it must be {gate_up.dtype} [{tokens}, {inner}]")
    if gate_up.stride(1) != 1 or out.stride(1) != 1:
        raise ValueError(f"strides {gate_up.stride()} and {out.stride()}: rows must be contiguous; call .contiguous()")
    tile = tile or choose(TILES, _shape(gate_up))
    grid = (tokens * triton.cdiv(inner, tile.constants["BLOCK"]),)
    launch(silu_mul_kernel, grid, gate_up, out, inner, gate_up.stride(0), out.stride(0), tile=tile)
    return out


def silu_mul_reference(gate_up: Tensor, *, out: Tensor | None = None, tile: Tile | None = None) -> Tensor:
    """The same in plain PyTorch; in float64 when given float64."""
    gate, up = gate_up.to(torch.promote_types(gate_up.dtype, torch.float32)).chunk(2, dim=1)
    y = (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)
    return y if out is None else out.copy_(y)


def _shape(gate_up: Tensor) -> Shape:
    return {"inner": gate_up.shape[1] // 2, "dtype": str(gate_up.dtype).removeprefix("torch.")}


def _default(capability: int, shape: Shape) -> Tile:
    return Tile({"BLOCK": 1024}, num_warps=4, num_stages=1)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    return [Tile({"BLOCK": 256 * warps}, num_warps=warps, num_stages=1) for warps in (2, 4, 8)]


TILES = Tiles("silu_mul", _default, _candidates)


def work(tokens: int, inner: int, *, bytes_per_number: int = 2) -> Work:
    """Gate and up are read once, y is written once."""
    return Work(bytes_per_number * tokens * inner * 3)


def cases() -> Iterator[Case]:
    """The inner size of a 7B model in each dtype, and one that no 16-byte load divides."""
    for inner, dtype in (
        (11008, torch.bfloat16),
        (11008, torch.float16),
        (11008, torch.float32),
        (1001, torch.bfloat16),
    ):
        yield _case(inner, dtype)


def _case(inner: int, dtype: torch.dtype, tokens: int = 4096) -> Case:
    def make(device: torch.device) -> Call:
        gate_up = torch.randn(tokens, 2 * inner, dtype=dtype, device=device)
        out = torch.empty(tokens, inner, dtype=dtype, device=device)
        return lambda tile: silu_mul(gate_up, out=out, tile=tile)

    shape = _shape(torch.empty(0, 2 * inner, dtype=dtype, device="meta"))
    return Case(f"inner={inner} {str(dtype).removeprefix('torch.')}", TILES, shape, make, matrix=False)
