"""Calls into a policy: timed, and whatever goes wrong in there is reported with the policy's name and the hook's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from engine.clock import stopwatch
from engine.policies.base import PolicyError, broken

_END = object()


def guarded(policy: object, hook: str) -> Callable[..., Any]:
    """The hook, with any exception turned into a PolicyError."""
    return Guard(policy).hook(hook)


class Guard:
    """Stands between the engine and one policy."""

    def __init__(self, policy: object) -> None:
        self.policy = policy
        self.calls = 0
        self.seconds = 0.0
        """Spent in its hooks so far."""

    def hook(self, name: str) -> Callable[..., Any]:
        """The hook, with any exception turned into a PolicyError."""
        return self._guarded(name, getattr(self.policy, name))

    def _guarded(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            begun = stopwatch()
            try:
                return call(*args)
            except PolicyError:
                raise
            except Exception as error:
                raise broken(self.policy, name, f"raised {type(error).__name__}: {error}") from error
            finally:
                self.calls += 1
                self.seconds += stopwatch() - begun

        return run

    def ask(self, hook: str, *args: Any) -> Any:
        """One call of the hook."""
        return self.hook(hook)(*args)

    def ask_each(self, hook: str, *args: Any) -> Iterator[Any]:
        """What a hook that is a generator yields, guarded at every step."""
        source = self.ask(hook, *args)
        if not hasattr(source, "__next__"):
            raise broken(self.policy, hook, f"returned {source!r}, which isn't an iterator: write it with yield")
        step = self._guarded(hook, partial(next, source, _END))
        while (item := step()) is not _END:
            yield item
