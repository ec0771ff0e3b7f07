"""The distributions that traffic is drawn from. Each draws from the generator that it is given."""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

ARRIVALS = ("poisson", "gamma", "onoff", "none")


class Lengths(NamedTuple):
    """Log-normal with this mean and coefficient of variation, rounded, 1 or more."""

    mean: float
    cv: float

    def draw(self, rng: random.Random) -> int:
        """sigma^2 = ln(1 + cv^2), mu = ln(mean) - sigma^2 / 2."""
        variance = math.log1p(self.cv**2)
        drawn = rng.lognormvariate(math.log(self.mean) - variance / 2, math.sqrt(variance))
        return max(1, round(drawn))


class Zipf:
    """Ranks 0 .. n-1; rank k with a probability in proportion to (k + 1) ** -alpha."""

    def __init__(self, n: int, alpha: float) -> None:
        weights = [(k + 1) ** -alpha for k in range(n)]
        self.shares = [weight / sum(weights) for weight in weights]
        self._up_to = list(accumulate(self.shares))

    def draw(self, rng: random.Random) -> int:
        return min(bisect(self._up_to, rng.random()), len(self.shares) - 1)


def geometric(mean: float, rng: random.Random) -> int:
    """1, 2, ...: n with probability p (1 - p)^(n - 1), p = 1 / mean."""
    if mean <= 1:
        return 1
    return 1 + int(math.log(1 - rng.random()) / math.log(1 - 1 / mean))


def exponential(mean: float, rng: random.Random) -> float:
    return rng.expovariate(1 / mean) if mean > 0 else 0.0


def arrivals(process: str, rate: float, cv: float, on_s: float, off_s: float, rng: random.Random) -> Iterator[float]:
    """Seconds of one arrival after the other, without end, `rate` a second in the long run.

    poisson: exponential gaps. gamma: gaps of a gamma law of shape 1 / cv^2, so of this coefficient of variation (1 is
    poisson, above it bursts). onoff: poisson at rate * (on_s + off_s) / on_s in periods that last on_s in the mean, and
    nothing in those of off_s between them; periods are exponential, and the first is on.
    """
    now = 0.0
    if process == "onoff":
        busy = rate * (on_s + off_s) / on_s
        while True:
            end = now + exponential(on_s, rng)
            while (now := now + rng.expovariate(busy)) < end:
                yield now
            now = end + exponential(off_s, rng)
    while True:
        now += rng.expovariate(rate) if process == "poisson" else rng.gammavariate(1 / cv**2, cv**2 / rate)
        yield now
