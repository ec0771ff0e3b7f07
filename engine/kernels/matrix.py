"""Matrix products and casts that run the same on a chip and under Triton's interpreter.

The interpreter multiplies bfloat16 by its bits and casts int8 to bfloat16 wrongly; there both go through float32, which
holds every product of two bfloat16 exactly, as the matrix units do. It also cuts float32 off to bfloat16 where a chip
rounds. Compiled code has nothing of this.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b, acc=None):
    """acc + a @ b in float32; float32 operands are multiplied as they are, never rounded to tf32."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def widen(x, dtype: tl.constexpr):
    """x as `dtype`, which holds all its values: int8 or float8 to a 16-bit type, or nothing to do."""
    if INTERPRETED:
        return x.to(tl.float32).to(dtype)
    else:
        return x.to(dtype)


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """x in float32 as `dtype`, rounded to the nearest."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        return (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True).to(dtype)
    else:
        return x.to(dtype)
