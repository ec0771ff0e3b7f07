"""Small stand-ins: requests made by hand, and a runner whose programs take a known number of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.clock import VirtualClock
from engine.request import FinishReason, Request, SamplingParams, Status

MakeRequest = Callable[..., Request]


@pytest.fixture
def make_request() -> MakeRequest:
    """A finished request with the times and counts given."""

    def make(
        *,
        arrival: float,
        token_times: list[float],
        prompt: int = 10,
        cached: int = 0,
        finished_at: float | None = None,
        error: str | None = None,
        admitted: bool = True,
    ) -> Request:
        n = len(token_times)
        key = np.arange(prompt, dtype=np.int64)
        request = Request(id=0, key=key, params=SamplingParams(max_tokens=n), arrival=arrival, added_at=arrival)
        request.tokens, request.n_tokens = np.arange(prompt + n, dtype=np.int64), prompt + n
        request.status, request.token_times, request.n_cached = Status.FINISHED, token_times, cached
        request.admitted_at = arrival if admitted else None
        request.finished_at = finished_at if finished_at is not None else (token_times or [arrival])[-1]
        request.finish_reason = FinishReason.LENGTH if error is None else FinishReason.ERROR
        request.error = error
        return request

    return make


def make_run(name: str, due: float, started: float, finished: float, requests: list[Request], **fields: Any) -> Any:
    """A finished program with one call a request."""
    calls = [SimpleNamespace(name=f"call{i}", requests=[request]) for i, request in enumerate(requests)]
    given = {"status": "done", "error": None, "where": "", "client": ""} | fields
    return SimpleNamespace(name=name, due=due, started_at=started, finished_at=finished, calls=calls, **given)


@pytest.fixture
def program_run() -> Callable[..., Any]:
    return make_run


class StepRunner:
    """Programs that finish after `args["steps"]` steps of one second each, on a virtual clock."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.in_flight: dict[str, tuple[int, Any]] = {}
        self.most_in_flight = 0
        self.steps = 0

    def start(self, program: Any, kwargs: Mapping[str, Any], *, due: float, name: str, **tags: Any) -> Any:
        if "steps" not in kwargs:
            raise TypeError("program 'count' needs steps")
        run = make_run(name, due, self.clock.now(), 0.0, [], tags=tags)
        self.in_flight[name] = (kwargs["steps"], run)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return run

    idle_until = None

    def step(self) -> list[Any]:
        self.clock.advance(1.0)
        self.steps += 1
        done = []
        for name, (left, run) in list(self.in_flight.items()):
            if left == 1:
                run.finished_at = self.clock.now()
                done.append(run)
                del self.in_flight[name]
            else:
                self.in_flight[name] = (left - 1, run)
        return done


@pytest.fixture
def step_runner() -> StepRunner:
    return StepRunner(VirtualClock(100.0))
