"""Chain hashes: one 64-bit key a page that stands for the page and everything before it.

    h(i) = finalise(seed(namespace) + sum over j <= i of mix(token j) * odd(j))   (mod 2**64)

where `odd(j)` is a fixed pseudo-random odd number for position j. The sum runs on from any point, so a node needs only
the sum at its own start, and keys survive splits, evictions and returns. Stable across processes and machines.
The mixers are the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

Sums = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MUL_1 = np.uint64(0xBF58476D1CE4E5B9)
_MUL_2 = np.uint64(0x94D049BB133111EB)


def _mix(x: Sums) -> Sums:
    """SplitMix64's finaliser: a bijection of 64-bit numbers. In place."""
    x ^= x >> np.uint64(30)
    x *= _MUL_1
    x ^= x >> np.uint64(27)
    x *= _MUL_2
    x ^= x >> np.uint64(31)
    return x


def _odd_numbers(n: int) -> Sums:
    x = np.arange(1, n + 1, dtype=np.uint64)
    x *= _GOLDEN
    return _mix(x) | np.uint64(1)


class _Positions:
    """odd(0), odd(1), ...: a pure function of the position, kept as far as it was needed."""

    def __init__(self) -> None:
        self._known = _odd_numbers(4096)

    def __call__(self, start: int, end: int) -> Sums:
        if end > len(self._known):
            self._known = _odd_numbers(max(end, 2 * len(self._known)))
        return self._known[start:end]


_positions = _Positions()


def namespace_seed(namespace: str) -> int:
    """Where the running sum of a namespace starts. Equal prompts of different namespaces have different keys."""
    return int.from_bytes(hashlib.blake2b(namespace.encode(), digest_size=8).digest(), "little")


def running_sums(tokens: bytes, start: int, before: int) -> Sums:
    """The sum after each token, uint64 [tokens]; `tokens` are int64 as bytes, the first at position `start`."""
    x = np.frombuffer(tokens, np.uint64) + _GOLDEN
    x = _mix(x)
    x *= _positions(start, start + len(x))
    sums: Sums = np.add.accumulate(x)
    sums += np.uint64(before)
    return sums


def page_keys(sums: Sums, page_size: int) -> memoryview:
    """The key of each whole page from the running sums of its tokens. A read-only view that indexes to int."""
    keys = _mix(sums[page_size - 1 :: page_size].copy())
    keys.flags.writeable = False
    return keys.data


def prompt_page_keys(tokens: bytes, namespace: str, page_size: int) -> memoryview:
    """The keys of a prompt's whole pages, from its first token on."""
    return page_keys(running_sums(tokens, 0, namespace_seed(namespace)), page_size)
