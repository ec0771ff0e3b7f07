"""Instruction selection: how each call is made.

- A gen that can say only one thing, and a select of one choice, are text: no call.
- Equal gens after equal prompts (siblings of a fork, say) are samples of one call where outputs are drawn at random.
- A select scores all its choices after the prompt, or ("trie") the model decodes held to the choices, in one request: a
  single masked step where each choice is one token. That is the rule of `greedy_token_selection`, but for choices that
  merge with the prompt's last token and for spellings of a choice in other tokens; so only selects by that rule are
  made so, unless told otherwise, and the report says that the choice may be another.
- On an API, gens of one message between fixed texts are asked for together (`speculate`), and the answer is taken apart
  where its text matches.
"""

from __future__ import annotations

import re
from typing import Any

from lang.graph.graph import Graph
from lang.graph.ops import Gen, Operation, Select
from lang.passes.base import Notes, Pass
from lang.passes.common_calls import asked
from lang.passes.prompts import OUTPUT, Parts, Prompts, named
from lang.passes.rewrite import each_operation

_SPECIAL = set(".^$*+?{}[]|()\\")


def forced_text() -> Pass:
    """Gens and selects that can say only one thing are text."""
    return Pass("forced_text", lambda graph, notes: each_operation(graph, lambda op: _forced(op, notes)))


def one_call_for_siblings() -> Pass:
    """Equal gens after equal prompts are samples of one call, where outputs are drawn."""
    return Pass("one_call_for_siblings", _siblings)


def select_by_decoding(methods: tuple[str, ...] = ("greedy_token_selection",)) -> Pass:
    """Selects by these rules decode held to their choices. Scores are no longer told.

    The choice may be another where one merges with the prompt's last token, or where the rule isn't greedy.
    """
    return Pass(
        "select_by_decoding", lambda graph, notes: each_operation(graph, lambda op: decoded(op, notes, methods))
    )


def speculate(num_api_spec_tokens: int) -> Pass:
    """On an API, a gen with a stop is asked for so many tokens, and answers those behind it where the text matches.

    At other backends each gen is a call, as before. Greedy answers stay the same; drawn ones are drawn otherwise.
    """
    return Pass("speculate", _speculated, num_api_spec_tokens)


def _speculated(graph: Graph, notes: Notes) -> Graph:
    before = Prompts(graph).before
    calls = {op.id: op for op in graph.every() if isinstance(op, Gen)}
    for op in calls.values():
        *_, last = ("", *(part for part in before[op.id] if not isinstance(part, str)))
        if isinstance(last, tuple) and last[0] == OUTPUT and last[1] in calls:
            first = calls[last[1]]
            if first.sampling.get("stop") or first.sampling.get("stop_regex"):
                notes.changes.append(f"on an API, {named(op)} may be served by what {named(first)} says after")
    return graph


def only_text(pattern: str) -> str | None:
    """The one text that a regex matches, if it is plain text. Others that match just one text aren't recognised."""
    if (found := re.fullmatch(r"\(([^()|\\]*)\)", pattern)) is not None:
        pattern = found[1]
    text, escaped = [], False
    for char in pattern:
        if escaped:
            if char.isalnum():
                return None
            text.append(char)
            escaped = False
        elif char == "\\":
            escaped = True
        elif char in _SPECIAL:
            return None
        else:
            text.append(char)
    return None if escaped or not text else "".join(text)


def _forced(op: Operation, notes: Notes) -> Operation:
    if isinstance(op, Gen) and isinstance(pattern := op.sampling.get("regex"), str):
        text = only_text(pattern)
        if text is not None and op.text is None:
            notes.changes.append(f"{named(op)} can only say {text!r:.60}: no call")
            notes.changed_meta.append(f"{named(op)}: no tokens are counted")
            return op.model_copy(update={"text": text})
    if isinstance(op, Select) and len(set(map(str, op.choices))) == 1 and isinstance(op.choices[0], str):
        notes.changes.append(f"{named(op)} has one choice: no call")
        notes.changed_meta.append(f"{named(op)}: no scores, no tokens are counted")
        return op.model_copy(update={"how": "text"})
    return op


def _siblings(graph: Graph, notes: Notes) -> Graph:
    known = Prompts(graph)
    groups: dict[tuple[int, Parts, Any], list[Gen]] = {}
    for op in graph.every():
        if isinstance(op, Gen) and op.text is None and not {"n", "logprobs", "tools"} & op.sampling.keys():
            groups.setdefault((known.region[op.id], known.before[op.id], asked(op, known)), []).append(op)
    updates: dict[int, dict[str, Any]] = {}
    for first, *others in groups.values():
        if not others:
            continue
        updates[first.id] = {"n_samples": 1 + len(others)}
        for i, other in enumerate(others, 1):
            updates[other.id] = {"sample_of": (first.id, i)}
        notes.changes.append(f"{named(first)} and {len(others)} like it are one call for {1 + len(others)} samples")
        notes.changed_meta.append(f"{named(first)} and {len(others)} more: counts, where a backend counts all as one")
    return each_operation(graph, lambda op: op.model_copy(update=updates[op.id]) if op.id in updates else op)


def decoded(op: Operation, notes: Notes, methods: tuple[str, ...]) -> Operation:
    if not isinstance(op, Select) or op.method not in methods or op.how != "score":
        return op
    notes.changes.append(f"{named(op)} decodes held to its choices")
    why = "where it merges with the prompt's last token" if op.method == "greedy_token_selection" else "by another rule"
    notes.changed_meta.append(f"{named(op)}: no scores; the choice may be another {why}")
    return op.model_copy(update={"how": "trie"})
