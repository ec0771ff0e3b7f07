"""Longest output first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine.policies.base import RequestView, SchedulePolicy, ScheduleView


class LongestOutputFirst(SchedulePolicy):
    """Whoever may generate most goes first (by its prediction where it has one), so that the batch drains evenly."""

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        def place(request: RequestView) -> tuple[int, float, int]:
            predicted = request.predicted_output
            length = request.max_tokens if predicted is None else min(predicted, request.max_tokens)
            return (request.output_tokens - length, request.arrival, request.id)

        return iter(sorted(waiting, key=place))
