"""Property tests for eviction policies."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import given

from engine.cache.hooks import Hooks
from engine.cache.radix_tree import RadixTree
from engine.conformance.fingerprint import fingerprint
from engine.conformance.traffic import Script, Traffic, random_scripts, scripts
from engine.policies.base import Ctx, EvictionPolicy, Hint, Node, RequestView, broken
from engine.policies.guard import guarded


class Watched(EvictionPolicy):
    """A policy under observation: it decides, every call is checked against its contract."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.order = policy.order
        self._hooks = Hooks(policy)
        self.tree: RadixTree | None = None
        self._keys: dict[int, tuple[Any, str]] = {}
        """Of each evictable leaf after the last event: its key."""

    def _structure(self) -> Any:
        """All of the tree but `slot`."""
        assert self.tree is not None
        return [
            (
                *(n.id, n.parent.id if n.parent else 0, n.n_children, n.locks, n.leaf_index),
                *(n.start, n.n_tokens, n.key, n.pages.tobytes()),
                *(n.inserted_seq, n.used_seq, n.inserted_at, n.used_at, n.hits),
            )
            for n in self.tree.nodes()
        ]

    def _state(self) -> Any:
        """Whatever the policy could write."""
        assert self.tree is not None
        slots = [fingerprint(n.slot) for n in self.tree.nodes()]
        return fingerprint(self.policy), slots, self.tree.ctx.rng.getstate()

    def _call(self, hook: str, *args: Any) -> Any:
        before = self._structure()
        answer = guarded(self.policy, hook)(*args)
        if self._structure() != before:
            raise broken(self.policy, hook, "changed the tree; a policy writes only node.slot")
        return answer

    def _ask(self, hook: str, *args: Any) -> Any:
        """A question: the second answer is the first, and asking leaves no trace."""
        before = self._state()
        first = self._call(hook, *args)
        second = self._call(hook, *args)
        if repr(first) != repr(second):
            raise broken(
                self.policy, hook, f"answered {first!r}, and asked again {second!r}; it must have no side effects"
            )
        if self._state() != before:
            raise broken(self.policy, hook, "changed the policy, a slot or the random generator; it must not")
        return first

    def on_miss(self, request: RequestView, page_keys: Sequence[int], ctx: Ctx) -> None:
        self._call("on_miss", request, page_keys, ctx)

    def on_insert(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        self._call("on_insert", node, request, ctx)

    def on_hit(self, node: Node, request: RequestView, ctx: Ctx) -> None:
        self._call("on_hit", node, request, ctx)

    def on_split(self, upper: Node, lower: Node, ctx: Ctx) -> None:
        had_state = lower.slot is not None
        self._call("on_split", upper, lower, ctx)
        if had_state and (upper.slot is None or lower.slot is None):
            raise broken(self.policy, "on_split", "threw the state in node.slot away; both halves need it")
        if self.order != "lazy":
            return
        above, below = self._ask("key", upper, ctx), self._ask("key", lower, ctx)
        known = self._keys.get(lower.id)
        if known is not None and below == known[0] and above < below:
            what = f"lost state: the node's key was {below!r}, its upper half's is {above!r} though it was used no less"
            raise broken(self.policy, "on_split", what)

    def on_evict(self, node: Node, page_keys: Sequence[int], ctx: Ctx) -> None:
        self._call("on_evict", node, page_keys, ctx)

    def on_done(self, request: RequestView, path: Sequence[Node], ctx: Ctx) -> None:
        self._call("on_done", request, path, ctx)

    def on_hint(self, hint: Hint, ctx: Ctx) -> None:
        self._call("on_hint", hint, ctx)

    def key(self, node: Node, ctx: Ctx) -> tuple:
        return self._ask("key", node, ctx)

    def keys(self, nodes: Sequence[Node], ctx: Ctx) -> Sequence[Any]:
        return self._ask("keys", nodes, ctx)

    def take(self, node: Node, need: int, ctx: Ctx) -> int:
        return self._ask("take", node, need, ctx)

    def victims(self, need: int, request: RequestView | None, ctx: Ctx) -> Iterator[Node]:
        source = self._hooks.victims(need, request, ctx)
        while True:
            before = self._structure()
            node = next(source, None)
            if self._structure() != before:
                raise broken(self.policy, "victims", "changed the tree; a policy writes only node.slot")
            if node is None:
                return
            yield node

    def after_event(self) -> None:
        """Keys of a lazy policy never decrease while the node lives."""
        assert self.tree is not None
        if self.order != "lazy":
            return
        keys: dict[int, tuple[Any, str]] = {}
        for node in self.tree.leaves:
            key = self.key(node, self.tree.ctx)
            known = self._keys.get(node.id)
            if known is not None and key < known[0]:
                what = f"went down from {known[1]} to {key!r} for {node!r}; order='lazy' promises that it never does"
                raise broken(self.policy, "key", what + " (use order='rekey' or 'own')")
            keys[node.id] = key, repr(key)
        alive = {node.id for node in self.tree.nodes()}
        self._keys = {i: k for i, k in {**self._keys, **keys}.items() if i in alive}


def watch(policy: EvictionPolicy) -> Watched:
    """The policy under observation, under its own name: errors are about it."""
    kind = type(policy)
    return type(kind.__name__, (Watched,), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})(policy)


def _decisions(make: Callable[[], EvictionPolicy], script: Script, *, watched: bool) -> list[tuple[int, int, int]]:
    policy = make()
    observed = watch(policy) if watched else None
    traffic = Traffic(observed or policy, script.page_size, script.n_pages)
    if observed:
        observed.tree = traffic.tree
    for event in script.events:
        traffic.play(event)
        traffic.check()
        if observed:
            observed.after_event()
    for held in traffic.running:
        traffic.finish(held, ())
    traffic.running.clear()
    traffic.evict(traffic.tree.cached_tokens, None)
    traffic.check()
    assert traffic.pool.n_free == traffic.pool.n_pages, "pages are missing after everything was evicted"
    return traffic.evictions


def check_eviction(make: Callable[[], EvictionPolicy], *, examples: int = 60, shrink: bool = True) -> None:
    """Runs a policy (a class, or a function that makes one) through `examples` random scripts.

    Holds it to: only evictable leaves are chosen, and all of them in the end; questions (`key`, `keys`, `take`) have no
    side effects; lazy keys never decrease; splits keep state; nodes may be shortened from their end; the tree is only
    read; no page is lost; the same seed gives the same decisions, with no global random generator.
    Raises PolicyError or AssertionError for the shortest script found that breaks one (the first, without `shrink`).
    """

    if not isinstance(make(), EvictionPolicy):
        raise TypeError(f"check_eviction: {make()!r} isn't an engine.policies.base.EvictionPolicy")

    @random_scripts(examples, shrink=shrink)
    @given(scripts)
    def holds(script: Script) -> None:
        before = random.getstate()
        decisions = _decisions(make, script, watched=True)
        again = _decisions(make, script, watched=False)
        name = type(make()).__qualname__
        assert random.getstate() == before, f"{name} uses the global random generator; use ctx.rng"
        assert decisions == again, f"{name} decided otherwise the second time: {decisions} and then {again}"

    holds()
