"""Property tests for schedule policies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.conformance.fingerprint import fingerprint
from engine.conformance.traffic import Arrive, Held, Traffic, arrivals, make_request, random_scripts, script_of
from engine.policies.base import Node, Prefetch, RequestView, SchedulePolicy, broken
from engine.policies.eviction.lru import LRU
from engine.policies.guard import guarded
from engine.request import Request


class Pass(NamedTuple):
    """A scheduling pass that admits at most `admit` requests, chunks under `budget` tokens, and frees `need` tokens."""

    admit: int
    budget: int
    need: int


class Finish(NamedTuple):
    which: int
    output: tuple[int, ...]


class Abort(NamedTuple):
    """The waiting request at `which` goes away."""

    which: int


class Hinted(NamedTuple):
    prefix: tuple[int, ...]


Event = Arrive | Pass | Finish | Abort | Hinted

_events = st.one_of(
    arrivals,
    arrivals,
    st.builds(Pass, st.integers(0, 5), st.integers(1, 9), st.sampled_from([0, 0, 0, 3, 20])),
    st.builds(Finish, st.integers(0, 7), st.lists(st.integers(0, 2), max_size=4).map(tuple)),
    st.builds(Abort, st.integers(0, 7)),
    st.builds(Hinted, st.lists(st.integers(0, 1), max_size=4).map(tuple)),
)


class Script(NamedTuple):
    page_size: int
    n_pages: int
    events: tuple[Event, ...]


scripts = st.builds(Script, st.sampled_from([1, 2, 4]), st.integers(16, 40), script_of(_events, 30))


class Desk:
    """Waiting and running requests over a real tree; the view that policies see."""

    def __init__(self, policy: SchedulePolicy, script: Script) -> None:
        self.policy = policy
        self.traffic = Traffic(LRU(), script.page_size, script.n_pages)
        self.page_size = script.page_size
        self.rng = random.Random(1)
        self.waiting: list[Request] = []
        self.decisions: list[tuple[str, int]] = []
        self._requests = 0

    @property
    def now(self) -> float:
        return self.traffic.tree.now

    @property
    def free(self) -> int:
        return self.traffic.pool.n_free * self.page_size

    @property
    def evictable(self) -> int:
        return self.traffic.tree.evictable_tokens

    @property
    def running(self) -> Sequence[RequestView]:
        return tuple(held.request for held in self.traffic.running)

    @property
    def clients(self) -> Sequence[str]:
        return tuple(dict.fromkeys(r.client for r in (*self.running, *self.waiting)))

    def match(self, request: RequestView) -> int:
        return self.traffic.tree.match(request.key, request.namespace, request.prompt_tokens - 1).n_tokens

    def path(self, request: RequestView) -> Sequence[Node]:
        return self.traffic.tree.match(request.key, request.namespace, request.prompt_tokens - 1).path

    def _world(self) -> Any:
        """What no schedule policy may change."""
        tree = self.traffic.tree
        nodes = [(n.id, n.n_tokens, n.locks, n.used_seq, n.hits, fingerprint(n.slot)) for n in tree.nodes()]
        requests = (*self.waiting, *(held.request for held in self.traffic.running))
        return nodes, [[_frozen(value) for value in _fields(request)] for request in requests]

    def _call(self, hook: str, *args: Any) -> Any:
        before = self._world()
        answer = guarded(self.policy, hook)(*args, self)
        if self._world() != before:
            raise broken(self.policy, hook, "changed a request or the tree; a policy only reads them")
        return answer

    def _steps(self, hook: str, *args: Any) -> Iterator[Any]:
        """The policy's iterator, a checked step at a time."""
        source = iter(self._call(hook, *args))
        while True:
            before = self._world()
            try:
                answer = next(source, None)
            except Exception as error:
                raise broken(self.policy, hook, f"raised {type(error).__name__}: {error}") from error
            if self._world() != before:
                raise broken(self.policy, hook, "changed a request or the tree; a policy only reads them")
            if answer is None:
                return
            yield answer

    def play(self, event: Event) -> None:
        match event:
            case Arrive():
                self._requests += 1
                request = make_request(self._requests, event, self.now)
                self.waiting.append(request)
                self._call("on_arrival", request)
            case Pass(admit, budget, need):
                self.traffic.tree.now += 0.25
                self.preempt(need)
                self.admit(admit, budget)
            case Finish(which, output):
                if self.traffic.running:
                    self.finish(self.traffic.running[which % len(self.traffic.running)], output)
            case Abort(which):
                if self.waiting:
                    self._call("on_done", self.waiting.pop(which % len(self.waiting)))
            case Hinted(prefix):
                self._call("on_hint", Prefetch(prefix, 1))

    def finish(self, held: Held, output: tuple[int, ...]) -> None:
        if output:
            self._call("on_tokens", held.request, len(output))
        self.traffic.running.remove(held)
        self.traffic.finish(held, output)
        self._call("on_done", held.request)

    def admit(self, most: int, budget: int) -> None:
        """Admits what `order` yields until `most` are in or one doesn't fit."""
        seen: set[int] = set()
        idle = not self.traffic.running
        for request in self._steps("order", tuple(self.waiting)):
            if not any(request is one for one in self.waiting):
                raise broken(self.policy, "order", f"yielded {_name(request)}, which isn't waiting (any more)")
            if request.id in seen:
                raise broken(self.policy, "order", f"yielded {_name(request)} twice in a pass")
            seen.add(request.id)
            self.decisions.append(("order", request.id))
            if len(seen) > most:
                return
            cached = self.match(request)
            if not self.traffic.start(request):
                return
            self.waiting.remove(request)
            n = self.chunk(request, budget)
            self._call("on_scheduled", request, min(n, request.prompt_tokens - cached), cached)
        if idle and self.waiting and not seen:
            raise broken(self.policy, "order", "yielded nobody though requests wait and nothing runs")

    def chunk(self, request: Request, budget: int) -> int:
        n = self._call("chunk", request, budget)
        if not isinstance(n, int) or not 1 <= n <= budget:
            raise broken(self.policy, "chunk", f"gave {n!r}; it must be from 1 to the budget of {budget} tokens")
        self.decisions.append(("chunk", n))
        return n

    def preempt(self, need: int) -> None:
        for victim in self._steps("preempt", self.running, tuple(self.waiting), need):
            held = next((held for held in self.traffic.running if held.request is victim), None)
            if held is None:
                raise broken(self.policy, "preempt", f"yielded {_name(victim)}, which isn't running (any more)")
            self.decisions.append(("preempt", victim.id))
            self.traffic.running.remove(held)
            self.traffic.finish(held, ())
            self.waiting.insert(0, held.request)
            need -= held.request.prompt_tokens
            if need <= 0:
                return

    def drain(self) -> None:
        """With nobody else coming and the batch emptied after every pass, everybody gets a turn."""
        patience = 4 * len(self.waiting) + 8
        for _ in range(patience):
            for held in list(self.traffic.running):
                self.finish(held, ())
            if not self.waiting:
                return
            self.traffic.tree.now += 1.0
            self.admit(2, 8)
        names = [request.id for request in self.waiting]
        raise broken(self.policy, "order", f"left requests {names} waiting for {patience} passes in an empty engine")


_fields = attrgetter(*Request.__slots__)


def _frozen(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tobytes()
    return tuple(value) if isinstance(value, list) else value


def _name(request: Any) -> str:
    return f"request {request.id}" if isinstance(request, Request) else repr(request)


def _decisions(make: Callable[[], SchedulePolicy], script: Script) -> list[tuple[str, int]]:
    desk = Desk(make(), script)
    for event in script.events:
        desk.play(event)
        desk.traffic.check()
    desk.drain()
    desk.traffic.check()
    return desk.decisions


def check_scheduling(make: Callable[[], SchedulePolicy], *, examples: int = 60, shrink: bool = True) -> None:
    """Runs a policy (a class, or a function that makes one) through `examples` random scripts.

    Holds it to: `order` yields waiting requests, each once a pass, and somebody when nothing runs; `chunk` lies within
    1..budget; `preempt` yields running requests; requests and the tree are only read; everybody gets a turn in an empty
    engine; the same seed gives the same decisions, with no global random generator.
    Raises PolicyError or AssertionError for the shortest script found that breaks one (the first, without `shrink`).
    """

    if not isinstance(make(), SchedulePolicy):
        raise TypeError(f"check_scheduling: {make()!r} isn't an engine.policies.base.SchedulePolicy")

    @random_scripts(examples, shrink=shrink)
    @given(scripts)
    def holds(script: Script) -> None:
        before = random.getstate()
        decisions, again = _decisions(make, script), _decisions(make, script)
        name = type(make()).__qualname__
        assert random.getstate() == before, f"{name} uses the global random generator; use view.rng"
        assert decisions == again, f"{name} decided otherwise the second time: {decisions} and then {again}"

    holds()
