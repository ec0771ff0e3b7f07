"""`python -m engine.conformance lru`, `... path/to/mine.py:MyPolicy alpha=0.5`."""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from typing import Any

from engine.conformance import check_eviction, check_scheduling
from engine.policies.base import EvictionPolicy, PolicyError, SchedulePolicy
from engine.policies.names import unknown_name
from engine.policies.registry import available, load_class, make_policy, policy_class


def kind_of(policy: str) -> str:
    """Which kit a policy needs, "eviction" or "scheduling". Raises PolicyError when it's neither."""
    if ".py:" in policy:
        found = load_class(policy)
        for kind, base in (("eviction", EvictionPolicy), ("scheduling", SchedulePolicy)):
            if inspect.isclass(found) and issubclass(found, base):
                return kind
        raise PolicyError(f"{policy} is {found!r}: neither an EvictionPolicy nor a SchedulePolicy, so no kit fits")
    kinds = [kind for kind in ("eviction", "scheduling") if policy in available(kind)]
    if not kinds:
        raise PolicyError(unknown_name("policy", policy, {*available("eviction"), *available("scheduling")}))
    if len(kinds) > 1:
        raise PolicyError(
            f"{policy!r} is the name of two policies; say which with --kind eviction or --kind scheduling"
        )
    return kinds[0]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: list[str] | None = None) -> int:
    """Prints what held, or what broke and the shortest script that breaks it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.conformance", description="Tests a policy's promises.")
    parser.add_argument("policy", help="a name, or path/to/file.py:Class")
    parser.add_argument("args", nargs="*", metavar="name=value", help="parameters of the policy")
    parser.add_argument("--kind", choices=("eviction", "scheduling"), help="where a name stands for both")
    parser.add_argument("--examples", type=int, default=200, help="random scripts to run (default 200)")
    options = parser.parse_args(arguments)
    args = {name: _value(value) for name, _, value in (given.partition("=") for given in options.args)}
    try:
        kind = options.kind or kind_of(options.policy)
        made = policy_class(kind, options.policy)
        make_policy(kind, options.policy, args)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 2
    check: Any = check_eviction if kind == "eviction" else check_scheduling
    try:
        check(lambda: made(**args), examples=options.examples)
    except (PolicyError, AssertionError) as error:
        print(f"{options.policy} breaks the contract of {kind} policies.\n\n{error}", file=sys.stderr)
        print("\n".join(getattr(error, "__notes__", ())), file=sys.stderr)
        return 1
    print(f"{options.policy}: every promise of {kind} policies held in {options.examples} random scripts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
