"""The kit lets good policies through and stops bad ones: for every promise a policy that breaks it."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from engine.conformance import check_eviction, check_scheduling
from engine.conformance.__main__ import main
from engine.policies.base import Ctx, EvictionPolicy, Node, PolicyError, RequestView, SchedulePolicy, ScheduleView
from engine.policies.eviction.lru import LRU
from engine.policies.registry import available, make_policy
from engine.policies.scheduling.fcfs import FCFS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", available("eviction"))
def test_our_eviction_policies_keep_their_promises(name: str) -> None:
    check_eviction(lambda: make_policy("eviction", name), examples=40)


@pytest.mark.parametrize("name", available("scheduling"))
def test_our_schedule_policies_keep_their_promises(name: str) -> None:
    check_scheduling(lambda: make_policy("scheduling", name), examples=25)


def test_cache_aware_keeps_its_promises_when_it_refreshes_little() -> None:
    check_scheduling(lambda: make_policy("scheduling", "cache_aware", {"refresh": 1}), examples=25)


class KeyCounts(LRU):
    """A question that writes."""

    asked = 0

    def key(self, node: Node, ctx: Ctx) -> tuple:
        self.asked += 1
        return (node.used_seq,)


class KeyWritesSlot(LRU):
    def key(self, node: Node, ctx: Ctx) -> tuple:
        node.slot = node.used_seq
        return (node.used_seq,)


class KeyDraws(LRU):
    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (ctx.rng.random(),)


class KeyChanges(LRU):
    numbers = itertools.count()

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (next(self.numbers),)


class MostRecent(LRU):
    """Its keys go down at each use."""

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (-node.used_seq,)


class SplitForgets(EvictionPolicy):
    """Keeps its counts by node id and isn't told of the upper half."""

    def __init__(self) -> None:
        self.uses: dict[int, int] = {}

    def on_insert(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        self.uses[node.id] = 1

    def on_hit(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        self.uses[node.id] = self.uses.get(node.id, 0) + 1

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (self.uses.get(node.id, 0),)


class SplitWipesSlot(LRU):
    def on_insert(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        node.slot = ctx.seq

    def on_split(self, upper: Node, lower: Node, ctx: Ctx) -> None:
        upper.slot = None

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return (node.used_seq,)


class OwnQueue(EvictionPolicy):
    """A queue of nodes, right but for what its subclasses do."""

    order = "own"

    def __init__(self) -> None:
        self.queue: list[Node] = []

    def on_insert(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        self.queue.append(node)

    def on_split(self, upper: Node, lower: Node, ctx: Ctx) -> None:
        self.queue.append(upper)

    def on_evict(self, node: Node, page_keys: Sequence[int], ctx: Ctx) -> None:
        if node.n_tokens == 0:
            self.queue.remove(node)

    def evictable(self, node: Node) -> bool:
        return node.locks == 0 and node.n_children == 0

    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        while True:
            node = next((node for node in self.queue if self.evictable(node)), None)
            if node is None:
                return
            yield node


class YieldsLocked(OwnQueue):
    def evictable(self, node: Node) -> bool:
        return node.n_children == 0


class YieldsInner(OwnQueue):
    def evictable(self, node: Node) -> bool:
        return node.locks == 0


class YieldsForeign(OwnQueue):
    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        yield object()  # type: ignore[misc]


class PartMeansAll(OwnQueue):
    """Takes a shortened node for gone."""

    def on_evict(self, node: Node, page_keys: Sequence[int], ctx: Ctx) -> None:
        self.queue.remove(node)


class TakesNothing(LRU):
    def take(self, node: Node, need: int, ctx: Ctx) -> int:
        return 0


class TakeDraws(LRU):
    def take(self, node: Node, need: int, ctx: Ctx) -> int:
        return ctx.rng.randrange(1, 5)


class GlobalRandom(OwnQueue):
    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        while len(leaves := ctx.leaves()):
            yield random.choice(list(leaves))


class Forgetful(OwnQueue):
    """State of the class: the second run with the same seed finds what the first one left."""

    turn = itertools.count()

    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        while len(leaves := ctx.leaves()):
            yield leaves[next(self.turn) % len(leaves)]


class WritesTree(LRU):
    def on_hit(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        node.hits = 0


class Raises(LRU):
    def on_done(self, request: RequestView, path: Sequence[Node], ctx: Ctx) -> None:
        raise KeyError("no such request")


class RekeyLosesOne(EvictionPolicy):
    order = "rekey"

    def keys(self, nodes: Sequence[Node], ctx: Ctx) -> Sequence[int]:
        return [node.used_seq for node in nodes][:2]


class RekeyMixesTypes(EvictionPolicy):
    order = "rekey"

    def keys(self, nodes: Sequence[Node], ctx: Ctx) -> Sequence[object]:
        return [(node.id,) if node.id % 2 else None for node in nodes]


class NoSuchOrder(EvictionPolicy):
    order = "lasy"  # type: ignore[assignment]


BROKEN_EVICTION: list[tuple[type[EvictionPolicy], str]] = [
    (KeyCounts, "KeyCounts: key: changed the policy"),
    (KeyWritesSlot, "KeyWritesSlot: key: changed the policy, a slot"),
    (KeyDraws, "KeyDraws: key: answered .* no side effects"),
    (KeyChanges, "KeyChanges: key: answered .* no side effects"),
    (MostRecent, "MostRecent: key: went down"),
    (SplitForgets, "SplitForgets: on_split: lost state"),
    (SplitWipesSlot, "SplitWipesSlot: on_split: threw the state"),
    (YieldsLocked, "YieldsLocked: victims: yielded .* a locked node"),
    (YieldsInner, "YieldsInner: victims: yielded .* an inner node"),
    (YieldsForeign, "YieldsForeign: victims: yielded .* isn't a node of the tree"),
    (PartMeansAll, "PartMeansAll: (victims: ended although|on_evict: raised ValueError)"),
    (TakesNothing, "TakesNothing: take: gave 0"),
    (TakeDraws, "TakeDraws: take: (answered|changed)"),
    (GlobalRandom, "GlobalRandom (uses the global random generator|decided otherwise)"),
    (Forgetful, "Forgetful decided otherwise the second time"),
    (WritesTree, "WritesTree: on_hit: changed the tree"),
    (Raises, "Raises: on_done: raised KeyError: 'no such request'"),
    (RekeyLosesOne, "RekeyLosesOne: keys: gave 2 keys for [0-9]+ nodes"),
    (RekeyMixesTypes, "RekeyMixesTypes: keys: gave keys that can't be compared"),
    (NoSuchOrder, "NoSuchOrder: order: unknown order 'lasy'; did you mean 'lazy'"),
]


def test_a_queue_of_ones_own_keeps_the_promises() -> None:
    """The broken ones below differ from it by one thing each."""
    check_eviction(OwnQueue)


@pytest.mark.parametrize(("policy", "why"), BROKEN_EVICTION, ids=lambda p: getattr(p, "__name__", ""))
def test_a_broken_eviction_policy_is_refused(policy: type[EvictionPolicy], why: str) -> None:
    with pytest.raises((PolicyError, AssertionError), match=why):
        check_eviction(policy, shrink=False)


class Twice(FCFS):
    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        for request in waiting:
            yield request
            yield request


class RemembersTheGone(SchedulePolicy):
    """Yields who came, not who waits."""

    def __init__(self) -> None:
        self.queue: list[RequestView] = []

    def on_arrival(self, request: RequestView, view: ScheduleView) -> None:
        self.queue.append(request)

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        return iter(self.queue)


class Idle(FCFS):
    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        return iter(())


class Starves(FCFS):
    """Never serves client b while anybody else waits or has waited."""

    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        return iter([request for request in waiting if request.client != "b"] or list(waiting)[:0])


class ChunksPastTheBudget(FCFS):
    def chunk(self, request: RequestView, budget: int, view: ScheduleView) -> int:
        return request.prompt_tokens


class ChunksOfNothing(FCFS):
    def chunk(self, request: RequestView, budget: int, view: ScheduleView) -> int:
        return budget - 1


class PreemptsTheWaiting(FCFS):
    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], need: int, view: ScheduleView
    ) -> Iterator[RequestView]:
        return iter(waiting)


class PreemptsTwice(FCFS):
    def preempt(
        self, running: Sequence[RequestView], waiting: Sequence[RequestView], need: int, view: ScheduleView
    ) -> Iterator[RequestView]:
        if need:
            yield from [*running, *running]


class WritesRequests(FCFS):
    def on_arrival(self, request: RequestView, view: ScheduleView) -> None:
        request.priority = 7


class ShufflesGlobally(FCFS):
    def order(self, waiting: Sequence[RequestView], view: ScheduleView) -> Iterator[RequestView]:
        return iter(random.sample(list(waiting), len(waiting)))


BROKEN_SCHEDULING: list[tuple[type[SchedulePolicy], str]] = [
    (Twice, "Twice: order: yielded request [0-9]+(, which isn't waiting| twice)"),
    (RemembersTheGone, "RemembersTheGone: order: yielded request [0-9]+, which isn't waiting"),
    (Idle, "Idle: order: yielded nobody"),
    (Starves, "Starves: order: yielded nobody"),
    (ChunksPastTheBudget, "ChunksPastTheBudget: chunk: gave [0-9]+; it must be from 1 to the budget"),
    (ChunksOfNothing, "ChunksOfNothing: chunk: gave 0; it must be from 1 to the budget of 1 tokens"),
    (PreemptsTheWaiting, "PreemptsTheWaiting: preempt: yielded request [0-9]+, which isn't running"),
    (PreemptsTwice, "PreemptsTwice: preempt: yielded request [0-9]+, which isn't running"),
    (WritesRequests, "WritesRequests: on_arrival: changed a request"),
    (ShufflesGlobally, "ShufflesGlobally (uses the global random generator|decided otherwise)"),
]


@pytest.mark.parametrize(("policy", "why"), BROKEN_SCHEDULING, ids=lambda p: getattr(p, "__name__", ""))
def test_a_broken_schedule_policy_is_refused(policy: type[SchedulePolicy], why: str) -> None:
    with pytest.raises((PolicyError, AssertionError), match=why):
        check_scheduling(policy, shrink=False)


@pytest.mark.parametrize("check", [check_eviction, check_scheduling])
def test_what_is_no_policy_is_refused(check: Callable[[Callable[[], object]], None]) -> None:
    with pytest.raises(TypeError, match=r"isn't an engine\.policies\.base"):
        check(object)


def test_the_command_says_what_held(capsys: pytest.CaptureFixture[str]) -> None:
    target = f"{ROOT / 'examples' / 'cheap_first.py'}:CheapFirst"
    assert main([target, "alpha=0.25", "--examples", "20"]) == 0
    assert "every promise of eviction policies held in 20 random scripts" in capsys.readouterr().out


def test_the_command_says_what_broke_and_how(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from engine.policies.eviction.lru import LRU\n"
        "class Mine(LRU):\n"
        "    def key(self, node, ctx):\n"
        "        return (-node.used_seq,)\n"
    )
    run = subprocess.run(
        [sys.executable, "-m", "engine.conformance", f"{file}:Mine", "--examples", "60"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 1
    assert "breaks the contract of eviction policies" in run.stderr
    assert "key: went down" in run.stderr
    assert "script=Script(" in run.stderr
    assert run.stderr.count("Arrive(") < 5, "the script shown is the shortest"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["lur"], "unknown policy 'lur'; did you mean 'lru'"),
        (["random"], "--kind eviction or --kind scheduling"),
        (
            ["slru", "protected=1"],
            "unknown parameter of eviction policy 'slru': 'protected'; did you mean 'protected_hits'",
        ),
        (["nowhere.py:Mine"], "there is no file 'nowhere.py'"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(
    arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert why in capsys.readouterr().err
