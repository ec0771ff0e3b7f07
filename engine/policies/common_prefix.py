"""How much two byte strings have in common at their start, at the speed of memcmp."""

from __future__ import annotations


def common_prefix(a: bytes, at: int, b: bytes, room: int, unit: int, same: int = 0) -> int:
    """Bytes that `a[at : at + room]` and `b` share from their start, in whole units of `unit` bytes.

    The first `same` units are known to be equal (and there).
    Doubling steps, then bisection: log2 of the answer comparisons, each one memcmp.
    """
    end = min(len(b), room) // unit
    step = 1  # in units, as are `same` and `end`
    while same < end:
        upto = min(same + step, end)
        if not a.startswith(b[same * unit : upto * unit], at + same * unit):
            break
        same, step = upto, step * 2
    else:
        return same * unit
    high = min(same + step, end)  # the first difference lies in units same .. high
    while high - same > 1:
        middle = (same + high) // 2
        if a.startswith(b[same * unit : middle * unit], at + same * unit):
            same = middle
        else:
            high = middle
    return same * unit
