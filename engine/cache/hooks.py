"""Calls into an eviction policy, as few and as guarded as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from engine.policies.base import EvictionPolicy
from engine.policies.guard import Guard


def overrides(policy: EvictionPolicy, hook: str) -> bool:
    return hook in vars(policy) or getattr(type(policy), hook) is not getattr(EvictionPolicy, hook)


class Hooks:
    """An eviction policy's hooks; None for those it leaves alone, so that they cost nothing."""

    def __init__(self, policy: EvictionPolicy) -> None:
        def hook(name: str) -> Callable[..., Any] | None:
            return self.guard.hook(name) if overrides(policy, name) else None

        self.policy = policy
        self.guard = Guard(policy)
        self.on_miss = hook("on_miss")
        self.on_insert = hook("on_insert")
        self.on_hit = hook("on_hit")
        self.on_split = hook("on_split")
        self.on_evict = hook("on_evict")
        self.on_done = hook("on_done")
        self.on_hint = hook("on_hint")
        self.take = hook("take")
        self.key = self.guard.hook("key")
        self.keys = self.guard.hook("keys")

    def victims(self, *args: Any) -> Iterator[Any]:
        """The policy's own conversation, guarded at every step."""
        return self.guard.ask_each("victims", *args)
