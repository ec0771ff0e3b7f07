"""What lies between the QKV projection and attention, in one pass: norm, rotary embedding, and K and V to their slots.

    each head of q and k, where the model has such norms (Qwen3): x = x / sqrt(mean(x^2) + eps) * w
    each head of q and k, by the angle of its position (RoFormer, arXiv 2104.09864, eq. 34, in the two-halves layout):
        a' = a cos - b sin,  b' = b cos + a sin       with a, b the first and the second half of the head
    a quantised pool, each head of k (turned) and v: scale = max|x| / largest,  stored = round(x / scale)
        with largest = 127 for int8 and 448 for float8 (e4m3), to the nearest, ties to even

Every rotary scaling (linear, dynamic, yarn, longrope, llama3) is in the tables of cosines and sines.
Tiling: one program takes HEADS heads of one token, all of q or of k or of v, as two tiles [heads, head_dim / 2], so
that both halves of a head meet in the same thread.
Moves: qkv once, q_out, K and V once; of the tables one row of each a token; 6 operations a pair, none of them matrix
products. Roofline: memory bandwidth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from engine.kernels.cases import Call, Case
from engine.kernels.launch import launch
from engine.kernels.paged import LARGEST, PagedKV
from engine.kernels.rms_norm import DTYPES, rms_norm_reference
from engine.kernels.roofline import Work
from engine.kernels.tiles import Shape, Tile, Tiles, choose, current_gpu


class Frequencies(Protocol):
    """What `engine.models.rotary.Rotary` knows of a model's rotary embedding."""

    frequencies: Tensor
    """Angle a position, float32 [head_dim / 2]."""
    scale: float
    """Factor on cosine and sine."""


def rotary_tables(rotary: Frequencies, max_positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the positions 0 .. max_positions - 1: float32 [max_positions, head_dim / 2] each.

    Computed on the CPU, so that every device turns by the same angles.
    """
    angles = torch.arange(max_positions, dtype=torch.float32)[:, None] * rotary.frequencies.cpu()
    return (angles.cos() * rotary.scale).to(device), (angles.sin() * rotary.scale).to(device)


@triton.jit
def rope_and_store_kernel(
    qkv,
    positions,
    slots,
    cos,
    sin,
    k_pool,
    v_pool,
    k_scale,
    v_scale,
    q_out,
    q_norm,
    k_norm,
    eps,
    qkv_stride,
    pool_head_stride,
    pool_slot_stride,
    scale_head_stride,
    Q_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    q_chunks: tl.constexpr = (Q_HEADS + HEADS - 1) // HEADS
    kv_chunks: tl.constexpr = (KV_HEADS + HEADS - 1) // HEADS
    chunk = tl.program_id(0) % (q_chunks + 2 * kv_chunks)
    token = (tl.program_id(0) // (q_chunks + 2 * kv_chunks)).to(tl.int64)
    heads = tl.arange(0, HEADS)[:, None]
    at = tl.arange(0, HALF_BLOCK)[None, :]
    source = qkv + token * qkv_stride
    # A name has one type in all branches: q_to and kv_to, a and turned_a are of different ones.
    if chunk < q_chunks:
        head = chunk * HEADS + heads
        inside = (head < Q_HEADS) & (at < HALF)
        a, b = load_halves(source + head * HEAD_DIM + at, inside, HALF)
        if q_norm is not None:
            a, b = norm_halves(a, b, q_norm, eps, at, HEAD_DIM)
        turned_a, turned_b = turn(a, b, cos, sin, tl.load(positions + token), at, HALF)
        q_to = q_out + (token * Q_HEADS + head) * HEAD_DIM + at
        tl.store(q_to, turned_a.to(q_out.dtype.element_ty), mask=inside)
        tl.store(q_to + HALF, turned_b.to(q_out.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + token)
        if slot >= 0:
            if chunk < q_chunks + kv_chunks:
                head = (chunk - q_chunks) * HEADS + heads
                inside = (head < KV_HEADS) & (at < HALF)
                a, b = load_halves(source + (Q_HEADS + head) * HEAD_DIM + at, inside, HALF)
                if k_norm is not None:
                    a, b = norm_halves(a, b, k_norm, eps, at, HEAD_DIM)
                turned_a, turned_b = turn(a, b, cos, sin, tl.load(positions + token), at, HALF)
                kv_to = k_pool + head.to(tl.int64) * pool_head_stride + slot * pool_slot_stride + at
                store_halves(turned_a, turned_b, kv_to, k_scale, head, slot, scale_head_stride, inside, KV_HEADS, HALF)
            else:
                head = (chunk - q_chunks - kv_chunks) * HEADS + heads
                inside = (head < KV_HEADS) & (at < HALF)
                a, b = load_halves(source + (Q_HEADS + KV_HEADS + head) * HEAD_DIM + at, inside, HALF)
                kv_to = v_pool + head.to(tl.int64) * pool_head_stride + slot * pool_slot_stride + at
                store_halves(a, b, kv_to, v_scale, head, slot, scale_head_stride, inside, KV_HEADS, HALF)


@triton.jit
def load_halves(source, inside, HALF: tl.constexpr):
    """The two halves of some heads, [heads, head_dim / 2] each, in their own dtype."""
    return tl.load(source, mask=inside, other=0.0), tl.load(source + HALF, mask=inside, other=0.0)


@triton.jit
def norm_halves(a, b, weight, eps, at, HEAD_DIM: tl.constexpr):
    """The norm over both halves, rounded where `rms_norm` rounds."""
    HALF: tl.constexpr = HEAD_DIM // 2
    wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
    squares = tl.sum(wide_a * wide_a + wide_b * wide_b, axis=1)
    scale = tl.rsqrt(squares / HEAD_DIM + eps)[:, None]
    inside = at < HALF
    w_a = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    w_b = tl.load(weight + HALF + at, mask=inside, other=0.0).to(tl.float32)
    normed_a = (wide_a * scale).to(a.dtype).to(tl.float32) * w_a
    normed_b = (wide_b * scale).to(b.dtype).to(tl.float32) * w_b
    return normed_a.to(a.dtype), normed_b.to(b.dtype)


@triton.jit
def turn(a, b, cos, sin, position, at, HALF: tl.constexpr):
    """Both halves turned, in float32."""
    inside = at < HALF
    c = tl.load(cos + position * HALF + at, mask=inside, other=0.0)
    s = tl.load(sin + position * HALF + at, mask=inside, other=0.0)
    wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
    return wide_a * c - wide_b * s, wide_b * c + wide_a * s


@triton.jit
def store_halves(a, b, to, scales, head, slot, scale_head_stride, inside, KV_HEADS: tl.constexpr, HALF: tl.constexpr):
    """Both halves to the pool at `to`, quantised where it has scales."""
    if scales is None:
        tl.store(to, a.to(to.dtype.element_ty), mask=inside)
        tl.store(to + HALF, b.to(to.dtype.element_ty), mask=inside)
    else:
        dtype: tl.constexpr = to.dtype.element_ty
        largest: tl.constexpr = 127.0 if dtype == tl.int8 else 448.0
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        absolute = tl.max(tl.maximum(tl.abs(wide_a), tl.abs(wide_b)), axis=1)[:, None]
        scale = tl.div_rn(absolute, tl.full(absolute.shape, largest, tl.float32))
        tl.store(scales + head.to(tl.int64) * scale_head_stride + slot, scale, mask=head < KV_HEADS)
        divisor = tl.where(scale > 0, scale, 1.0)
        tl.store(to, quantised(wide_a, divisor, largest, dtype), mask=inside)
        tl.store(to + HALF, quantised(wide_b, divisor, largest, dtype), mask=inside)


@triton.jit
def quantised(x, divisor, largest: tl.constexpr, dtype: tl.constexpr):
    """x / divisor on the grid of `dtype`, to the nearest, ties to even.

    Rounded by adding and taking away 1.5 * 2^23 steps, which leaves no room for fractions of a step: float32 addition
    rounds as IEEE 754 says on every backend, conversions to narrow types don't.
    """
    y = tl.div_rn(x, tl.broadcast_to(divisor, x.shape))
    y = tl.minimum(tl.maximum(y, -largest), largest)
    if dtype == tl.int8:
        room = 12582912.0
    else:
        # e4m3 has 3 bits after the leading one, down to 2^-6: the step is 2^(exponent - 3), at least 2^-9.
        exponent = tl.maximum(y.to(tl.int32, bitcast=True) & 0x7F800000, 121 << 23)
        room = (exponent + (20 << 23)).to(tl.float32, bitcast=True) * 1.5
    return ((y + room) - room).to(dtype)


def rope_and_store(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: PagedKV,
    q_out: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    tile: Tile | None = None,
) -> Tensor:
    """Turns q and k by their positions, after a norm of each head where weights are given, and stores k and v.

    qkv [tokens, (heads + 2 kv_heads) * head_dim] in float32, float16 or bfloat16, rows contiguous: the heads of q, of
    k, of v. positions, slots int64 [tokens]; a slot of -1 (padding) stores nothing, its position must still be one of
    the tables'. cos, sin float32 [max positions, head_dim / 2] (`rotary_tables`). q_norm, k_norm [head_dim].
    Returns q_out [tokens, heads, head_dim], contiguous, qkv's dtype; K and V are written to `kv`, whose pool is of any
    of these dtypes, or int8 or float8_e4m3fn with scales. No two tokens may have the same slot.
    Raises ValueError for other dtypes or shapes, and for float8 on GPUs before compute capability 8.9.
    """
    tokens, heads, head_dim = _check(qkv, positions, slots, cos, sin, kv, q_out, q_norm, k_norm)
    kv_heads = kv.k.shape[0]
    tile = tile or choose(TILES, _shape(heads, kv_heads, head_dim, qkv.dtype, kv.k.dtype))
    in_tile = tile.constants["HEADS"]
    chunks = triton.cdiv(heads, in_tile) + 2 * triton.cdiv(kv_heads, in_tile)
    tensors = qkv, positions, slots, cos, sin, kv.k, kv.v, kv.k_scale, kv.v_scale, q_out, q_norm, k_norm
    scale_stride = 0 if kv.k_scale is None else kv.k_scale.stride(0)
    strides = qkv.stride(0), kv.k.stride(0), kv.k.stride(1), scale_stride
    launch(
        rope_and_store_kernel,
        (tokens * chunks,),
        *tensors,
        eps,
        *strides,
        tile=tile,
        Q_HEADS=heads,
        KV_HEADS=kv_heads,
        HEAD_DIM=head_dim,
        HALF_BLOCK=triton.next_power_of_2(head_dim // 2),
    )
    return q_out


def rope_and_store_reference(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: PagedKV,
    q_out: Tensor,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 0.0,
    tile: Tile | None = None,
) -> Tensor:
    """The same in plain PyTorch; in float64 when given float64."""
    heads, kv_heads = q_out.shape[1], kv.k.shape[0]
    q, k, v = qkv.unflatten(1, (heads + 2 * kv_heads, -1)).split([heads, kv_heads, kv_heads], dim=1)
    q = q if q_norm is None else rms_norm_reference(q, q_norm, eps)
    k = k if k_norm is None else rms_norm_reference(k, k_norm, eps)
    wide = torch.promote_types(qkv.dtype, torch.float32)
    c, s = cos[positions].to(wide)[:, None], sin[positions].to(wide)[:, None]

    def turned(x: Tensor) -> Tensor:
        a, b = x.to(wide).chunk(2, dim=-1)
        return torch.cat([a * c - b * s, b * c + a * s], dim=-1)

    stored = slots >= 0
    for pool, scales, x in ((kv.k, kv.k_scale, turned(k)), (kv.v, kv.v_scale, v.to(wide))):
        x, to = x[stored].transpose(0, 1), slots[stored]  # [kv heads, stored tokens, head_dim]
        if scales is not None:
            largest = LARGEST[pool.dtype]
            scale = x.abs().amax(dim=-1) / torch.tensor(largest, dtype=wide, device=x.device)
            scales[:, to] = scale.to(scales.dtype)
            x = (x / torch.where(scale > 0, scale, 1)[..., None]).clamp(-largest, largest)
            x = x.round() if pool.dtype == torch.int8 else x
        pool[:, to] = x.to(pool.dtype)
    return q_out.copy_(turned(q))


def _check(
    qkv: Tensor,
    positions: Tensor,
    slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: PagedKV,
    q_out: Tensor,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
) -> tuple[int, int, int]:
    """Tokens, heads, head_dim."""
    if q_out.dim() != 3 or kv.k.dim() != 3 or q_out.shape[2] != kv.k.shape[2] or q_out.shape[2] % 2:
        raise ValueError(
            f"q_out is {list(q_out.shape)} and kv.k {list(kv.k.shape)}; they must be [tokens, heads, head_dim] and "
            "[kv heads, slots, head_dim] with the same, even head_dim"
        )
    (tokens, heads, head_dim), kv_heads = q_out.shape, kv.k.shape[0]
    if qkv.shape != (tokens, (heads + 2 * kv_heads) * head_dim) or qkv.stride(1) != 1 or qkv.dtype not in DTYPES:
        raise ValueError(
            f"qkv is {qkv.dtype} {list(qkv.shape)}, strides {qkv.stride()}; for {heads} heads and {kv_heads} kv heads "
            f"of {head_dim} it must be float32, float16 or bfloat16 [{tokens}, {(heads + 2 * kv_heads) * head_dim}] "
            "with contiguous rows"
        )
    if q_out.dtype != qkv.dtype or not q_out.is_contiguous():
        raise ValueError(f"q_out is {q_out.dtype}, strides {q_out.stride()}; it must be {qkv.dtype} and contiguous")
    for name, given in (("positions", positions), ("slots", slots)):
        if given.shape != (tokens,) or given.dtype != torch.int64 or not given.is_contiguous():
            raise ValueError(f"{name} is {given.dtype} {list(given.shape)}; it must be int64 [{tokens}], contiguous")
    for name, given in (("cos", cos), ("sin", sin)):
        if given.dim() != 2 or given.shape[1] != head_dim // 2 or not given.is_contiguous():
            raise ValueError(f"{name} is {list(given.shape)}; it must be [max positions, {head_dim // 2}], contiguous")
        if given.dtype != torch.float32:
            raise ValueError(f"{name} is {given.dtype}; it must be float32, as rotary_tables() makes it")
    for name, weight in (("q_norm", q_norm), ("k_norm", k_norm)):
        if weight is not None and (weight.shape != (head_dim,) or not weight.is_contiguous()):
            raise ValueError(f"{name} is {list(weight.shape)}; it must be [{head_dim}], contiguous")
    _check_pool(kv)
    return tokens, heads, head_dim


def _check_pool(kv: PagedKV) -> None:
    k, v = kv.k, kv.v
    if v.shape != k.shape or v.dtype != k.dtype or v.stride() != k.stride() or k.stride(2) != 1:
        raise ValueError(
            f"kv.k is {k.dtype} {list(k.shape)}, strides {k.stride()}, and kv.v {v.dtype} {list(v.shape)}, strides "
            f"{v.stride()}; they must be alike, each vector contiguous"
        )
    if k.dtype not in LARGEST:
        if k.dtype not in DTYPES or kv.k_scale is not None or kv.v_scale is not None:
            raise ValueError(
                f"the pool is {k.dtype}; it must be float32, float16, bfloat16 without scales, or quantised"
            )
        return
    for name, scales in (("k_scale", kv.k_scale), ("v_scale", kv.v_scale)):
        if scales is None or scales.shape != k.shape[:2] or scales.dtype != torch.float32 or scales.stride(1) != 1:
            given = "None" if scales is None else f"{scales.dtype} {list(scales.shape)}, strides {scales.stride()}"
            raise ValueError(f"kv.{name} is {given}; a pool of {k.dtype} needs float32 {list(k.shape[:2])}")
    if k.dtype == torch.float8_e4m3fn and current_gpu().capability < 89:
        raise ValueError(f"{current_gpu().name} has no float8; use int8 or an unquantised pool")


def _shape(heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype, pool: torch.dtype) -> Shape:
    names = {"dtype": str(dtype).removeprefix("torch."), "pool": str(pool).removeprefix("torch.")}
    return {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, **names}


def _tile(heads: int, shape: Shape) -> Tile:
    """8 pairs a thread: loads of 16 bytes."""
    pairs = heads * triton.next_power_of_2(int(shape["head_dim"]) // 2)
    return Tile({"HEADS": heads}, num_warps=min(max(pairs // 256, 1), 8), num_stages=1)


def _default(capability: int, shape: Shape) -> Tile:
    # As many heads as K has, so that no program is half empty; few enough that a token is spread over several.
    return _tile(min(max(triton.next_power_of_2(int(shape["kv_heads"])), 4), 16), shape)


def _candidates(capability: int, shape: Shape) -> list[Tile]:
    return [_tile(heads, shape) for heads in (4, 8, 16, 32)]


TILES = Tiles("rope_and_store", _default, _candidates)


def work(
    tokens: int, heads: int, kv_heads: int, head_dim: int, *, bytes_per_number: int = 2, bytes_per_stored: int = 2
) -> Work:
    """q, k and v are read; q, k, v (and the scales of a quantised pool) written; the tables read once a token."""
    vectors = tokens * (2 * heads + 2 * kv_heads) * head_dim * bytes_per_number
    stored = tokens * 2 * kv_heads * (head_dim * bytes_per_stored + (4 if bytes_per_stored == 1 else 0))
    return Work(vectors + stored + tokens * (4 * head_dim + 16))


def cases() -> Iterator[Case]:
    """Head sizes 64 to 256 and 80, groups of 1, 4, 7, with norms, and quantised pools."""
    half, bf16 = torch.float16, torch.bfloat16
    yield _case(32, 32, 128, bf16)
    yield _case(32, 8, 128, bf16)
    yield _case(32, 8, 128, bf16, has_norm=True)
    yield _case(28, 4, 128, half)
    yield _case(12, 12, 64, torch.float32)
    yield _case(16, 16, 80, bf16)
    yield _case(8, 1, 256, bf16)
    yield _case(32, 8, 128, bf16, pool=torch.int8)
    yield _case(32, 8, 128, bf16, pool=torch.float8_e4m3fn)


def _case(
    heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    pool: torch.dtype | None = None,
    has_norm: bool = False,
    tokens: int = 2048,
) -> Case:
    pool = pool or dtype

    def make(device: torch.device) -> Call:
        qkv = torch.randn(tokens, (heads + 2 * kv_heads) * head_dim, dtype=dtype, device=device)
        token = torch.arange(tokens, device=device)
        cos, sin = torch.rand(2, tokens, head_dim // 2, device=device)
        k, v = (torch.empty(kv_heads, tokens, head_dim, dtype=pool, device=device) for _ in range(2))
        scales = [torch.empty(kv_heads, tokens, device=device) if pool in LARGEST else None for _ in range(2)]
        kv = PagedKV(k, v, 16, *scales)
        q_out = torch.empty(tokens, heads, head_dim, dtype=dtype, device=device)
        norm = torch.ones(head_dim, dtype=dtype, device=device) if has_norm else None
        return lambda tile: rope_and_store(
            qkv, token, token, cos, sin, kv, q_out, q_norm=norm, k_norm=norm, eps=1e-6, tile=tile
        )

    shape = _shape(heads, kv_heads, head_dim, dtype, pool)
    label = f"heads={heads}/{kv_heads} head_dim={head_dim} {shape['dtype']}{' norm' if has_norm else ''}"
    label += f" {shape['pool']}-kv" if pool in LARGEST else ""
    return Case(label, TILES, shape, make, matrix=False, capability=89 if pool == torch.float8_e4m3fn else 80)
