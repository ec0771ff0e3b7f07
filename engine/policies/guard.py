"""Calls into a policy. Whatever goes wrong in there is reported with the policy's name and the hook's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from engine.policies.base import PolicyError, broken


def guarded(policy: object, hook: str) -> Callable[..., Any]:
    """The hook, with any exception turned into a PolicyError."""
    call = getattr(policy, hook)

    def run(*args: Any) -> Any:
        try:
            return call(*args)
        except PolicyError:
            raise
        except Exception as error:
            raise broken(policy, hook, f"raised {type(error).__name__}: {error}") from error

    return run


def ask(policy: object, hook: str, *args: Any) -> Any:
    """One call of the hook."""
    return guarded(policy, hook)(*args)


def ask_each(policy: object, hook: str, *args: Any) -> Iterator[Any]:
    """What a hook that is a generator yields, guarded at every step."""
    source = ask(policy, hook, *args)
    try:
        step = source.__next__
    except AttributeError:
        raise broken(policy, hook, f"returned {source!r}, which isn't an iterator: write it with yield") from None
    while True:
        try:
            item = step()
        except StopIteration:
            return
        except PolicyError:
            raise
        except Exception as error:
            raise broken(policy, hook, f"raised {type(error).__name__}: {error}") from error
        yield item
