"""Random numbers as a pure function of (seed, counter): no state, no order of drawing, the same in any batch.

SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014, fig. 16), in NumPy.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


def mix64(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The SplitMix64 finaliser: a bijection of 64 bits in which every input bit reaches every output bit."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seeds: list[int], counters: list[int]) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each (seed, counter): multiples of 2**-52, so that `u * total < total` in float64.

    The seed is mixed before the counter is added: streams of neighbouring seeds don't overlap.
    """
    seed = np.array([s & _MASK for s in seeds], np.uint64)
    counter = np.array([c + 1 for c in counters], np.uint64)
    bits = mix64(mix64(seed + GOLDEN) + counter * GOLDEN)
    return (bits >> np.uint64(12)).astype(np.float64) * 2.0**-52
