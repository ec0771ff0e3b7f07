"""Runs a log's inputs through a fresh engine with no model: the same decisions must come out, integer for integer.

python -m engine.replay outputs/.../events.parquet
"""

from __future__ import annotations

import json
import sys
from typing import Any

from engine.clock import VirtualClock
from engine.config import EngineConfig
from engine.constraints.grammar import Grammar
from engine.constraints.recorded import RecordedConstraints
from engine.cost import PrefillCost
from engine.engine import Engine
from engine.executor.replay import ReplayExecutor
from engine.log import Event, Log, LogError
from engine.policies import base
from engine.request import Request, RequestError, SamplingParams
from engine.splices import Splice

HINTS = {hint.__name__: hint for hint in (base.Prefetch, base.Pin, base.Unpin, base.ConversationEnd)}


def replay(log: Log) -> Log:
    """The log of the same inputs, decided anew. Raises ReplayDivergence when a batch differs from the recorded one."""
    clock = VirtualClock()
    engine = Engine(
        ReplayExecutor(log, clock),
        None,
        EngineConfig(**log.config["engine"]),
        clock=clock,
        eos=log.config["eos"],
        cost=PrefillCost(*log.config["cost"]),
        text_is_recorded=True,
    )
    requests: dict[int, Request] = {}
    for event in log.inputs():
        clock.sleep_until(event.time)
        if event.kind == "begin":
            engine.step()
        elif event.kind == "arrive":
            for request in _arrive(engine, event):
                requests[request.id] = request
        elif event.kind == "abort":
            engine.abort(requests[event.request])
        elif event.kind == "hint":
            fields: dict[str, Any] = json.loads(event.text)
            kind: Any = HINTS[fields.pop("kind")]
            if "prefix" in kind._fields:
                fields["prefix"] = event.tokens
            engine.hint(kind(**fields))
        elif event.kind == "flush":
            engine.flush_cache()
        elif event.kind == "measure":
            engine.reset_metrics()
    return engine.log


def _arrive(engine: Engine, event: Event) -> list[Request]:
    fields: dict[str, Any] = json.loads(event.text)
    params: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.pop("params").items()}
    if "grammar" in params:
        params["grammar"] = Grammar.from_data(params["grammar"])
    if isinstance(engine.constraints, RecordedConstraints):
        engine.constraints.begins_with = fields.pop("forced", ())
        engine.constraints.taken_back = fields.pop("taken_back", ())
    fields["splices"] = [Splice.from_data(data) for data in fields.pop("splices", ())]
    try:
        return engine.add(event.tokens, SamplingParams(**params), **fields)
    except RequestError:  # refused by the admission policy, as it was then
        return []


def first_difference(recorded: Log, replayed: Log) -> str | None:
    """In words: the first decision that isn't the same; None when all are."""
    ours, theirs = replayed.decisions(), recorded.decisions()
    for i, (a, b) in enumerate(zip(theirs, ours)):
        if a != b:
            return f"decision {i}: recorded {a}, replayed {b}"
    if len(ours) != len(theirs):
        return f"recorded {len(theirs)} decisions, replayed {len(ours)}"
    return None


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        print("usage: python -m engine.replay EVENTS.parquet", file=sys.stderr)
        return 2
    try:
        recorded = Log.read(argv[0])
    except LogError as error:
        print(error, file=sys.stderr)
        return 2
    difference = first_difference(recorded, replay(recorded))
    print(difference or f"{len(recorded.decisions())} decisions, all found again")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
