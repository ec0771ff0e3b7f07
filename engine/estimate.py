"""How much of its allowance a request will use: what admission keeps in reserve for those that run."""

from __future__ import annotations

import math

from engine.request import Request

SMOOTHING = 0.05
"""Weight of the newest finished request in the running mean and deviation."""
CAUTION = 0.1
"""Added at each preemption, fading by FADING a step."""
FADING = 0.98
LEAST = 0.05


class OutputEstimate:
    """Share of `max_tokens` that requests turn out to use: running mean plus one mean deviation, plus caution
    for a while after each preemption. Counts only; no time, no randomness."""

    def __init__(self) -> None:
        self._mean = 0.5
        self._deviation = 0.25
        self._caution = 0.0

    @property
    def ratio(self) -> float:
        return min(1.0, max(LEAST, self._mean + self._deviation + self._caution))

    def remaining(self, request: Request) -> int:
        """Output tokens the request is expected to produce yet (at least 1 while it runs, 0 when it only scores)."""
        left = request.max_tokens - request.output_tokens
        if left <= 0:
            return 0
        if request.params.forced_output is not None:
            return len(request.params.forced_output) - request.output_tokens
        if request.predicted_output is not None:
            expected = request.predicted_output
        else:
            expected = math.ceil(request.max_tokens * self.ratio)
        return min(left, max(1, expected - request.output_tokens))

    def on_step(self) -> None:
        self._caution *= FADING

    def on_preemption(self) -> None:
        self._caution = min(1.0, self._caution + CAUTION)

    def on_finish(self, request: Request) -> None:
        if request.max_tokens == 0 or request.params.forced_output is not None:
            return
        used = request.output_tokens / request.max_tokens
        self._deviation += SMOOTHING * (abs(used - self._mean) - self._deviation)
        self._mean += SMOOTHING * (used - self._mean)
