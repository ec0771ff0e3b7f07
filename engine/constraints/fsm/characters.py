"""Sets of characters, and the bytes that UTF-8 writes them with."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from engine.constraints.fsm import unicode_classes

Ranges = tuple[tuple[int, int], ...]
"""First and last code point of each run, ascending, with gaps between them."""

Bytes = tuple[tuple[int, int, "Bytes | None"], ...]
"""What may come next: first and last byte, and what comes after one of those (None: the character is whole)."""

ANY: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
"""All characters; the surrogates between aren't."""
NEWLINE: Ranges = ((0x0A, 0x0A),)


def united(sets: Iterable[Ranges]) -> Ranges:
    """What is in any of them and is a character."""
    runs: list[tuple[int, int]] = []
    for first, last in sorted(run for ranges in sets for run in _both(ranges, ANY)):
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(last, runs[-1][1]))
        else:
            runs.append((first, last))
    return tuple(runs)


def negated(ranges: Ranges) -> Ranges:
    """Every other character."""
    starts = [0, *(last + 1 for _, last in ranges)]
    ends = [*(first - 1 for first, _ in ranges), 0x10FFFF]
    return united([tuple((first, last) for first, last in zip(starts, ends, strict=True) if first <= last)])


def _both(some: Ranges, others: Ranges) -> Ranges:
    return tuple(
        (max(first, low), min(last, high))
        for first, last in some
        for low, high in others
        if max(first, low) <= min(last, high)
    )


def _parsed(table: str) -> Ranges:
    runs = (run.partition("-") for run in table.split())
    return tuple((int(first, 16), int(last or first, 16)) for first, _, last in runs)


DIGIT = _parsed(unicode_classes.DIGIT)
SPACE = _parsed(unicode_classes.SPACE)
WORD = _parsed(unicode_classes.WORD)


_LENGTHS = (  # first and last code point, and the first byte's bits that aren't the code point's
    (0x00, 0x7F, 0x00),
    (0x80, 0x7FF, 0xC0),
    (0x800, 0xFFFF, 0xE0),
    (0x10000, 0x10FFFF, 0xF0),
)


@lru_cache(maxsize=4096)
def utf8(ranges: Ranges) -> Bytes:
    """The set as a tree of bytes; equal branches are equal tuples."""
    branches: list[tuple[int, int, Bytes | None]] = []
    for n_following, (low, high, mark) in enumerate(_LENGTHS):
        branches += _branches(_both(ranges, ((low, high),)), n_following, mark)
    return tuple(branches)


@lru_cache(maxsize=1 << 14)
def _branches(ranges: Ranges, n_following: int, mark: int) -> Bytes:
    """Of numbers that are written as the byte mark + their highest six bits (or fewer), then `n_following` bytes."""
    if n_following == 0:
        return tuple((mark + first, mark + last, None) for first, last in ranges)
    size = 64**n_following
    blocks: dict[int, list[tuple[int, int]]] = {}
    for first, last in ranges:
        for block in range(first // size, last // size + 1):
            start = block * size
            blocks.setdefault(block, []).append((max(first - start, 0), min(last - start, size - 1)))
    found: list[tuple[int, int, Bytes | None]] = []
    for block, inside in blocks.items():
        below = _branches(tuple(inside), n_following - 1, 0x80)
        if found and found[-1][1] == mark + block - 1 and found[-1][2] == below:
            found[-1] = (found[-1][0], mark + block, below)
        else:
            found.append((mark + block, mark + block, below))
    return tuple(found)
