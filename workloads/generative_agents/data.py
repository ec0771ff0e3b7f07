"""Calls of agents: from a trace in the published form, or our sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from workloads.base import DataSource
from workloads.data import DataError, check_fields, jsonl_rows
from workloads.generative_agents.functions import FUNCTIONS, likely_output
from workloads.generative_agents.sample import sample_calls
from workloads.sources import Files, find_files, sample_source

TRACE = "agent_calls.jsonl"


class AgentCall(NamedTuple):
    agent: str
    function: str
    arguments: Mapping[str, str]
    recorded: str
    """What came out, or may have (`likely_output`)."""


class Trace(NamedTuple):
    source: DataSource
    calls: tuple[AgentCall, ...]
    """In their order; those of different agents take turns."""


def load_trace(data_dir: str | None, n_agents: int, n_events: int | None, seed: int, n_memories: int | None) -> Trace:
    """A line of the trace is {function: {argument: text, ...}}; `agent` and `recorded` may stand beside the function.

    Whose call it is, if the line doesn't say, is its `persona_name`, or else the call's before it. Of a sample
    `n_agents`, `seed` and `n_memories` are asked for. Raises DataError.
    """
    found = find_files("generative_agents", data_dir, (TRACE,))
    if not isinstance(found, Files):
        made = sample_calls(n_agents, n_events, seed, n_memories)
        source = sample_source("the trace of Generative Agents", made, found.why)
        return Trace(source, tuple(AgentCall(*call, likely_output(call[1], call[2])) for call in made))
    name = str(found.paths[TRACE])
    calls: list[AgentCall] = []
    for place, row in jsonl_rows(name, found.contents[TRACE], {}):
        if len(calls) == n_events:
            break
        calls.append(_call(place, row, calls))
    if not calls:
        raise DataError(f"{name}: no calls in it; get the file again")
    return Trace(found.source, tuple(calls))


def _call(place: str, row: Mapping[str, Any], before: Sequence[AgentCall]) -> AgentCall:
    functions = [key for key in row if key not in ("agent", "recorded")]
    if len(functions) != 1 or functions[0] not in FUNCTIONS:
        told = ", ".join(functions) or "none"
        raise DataError(f"{place}: one of the functions {', '.join(FUNCTIONS)} is needed as a key, not {told}")
    function = functions[0]
    check_fields(place, row, {function: dict})
    arguments = row[function]
    wanted = FUNCTIONS[function].arguments
    check_fields(f"{place}: {function}", arguments, dict.fromkeys(wanted, str))
    if unknown := [key for key in arguments if key not in wanted]:
        raise DataError(f"{place}: {function} has no argument {unknown[0]!r}; it takes {', '.join(wanted)}")
    for key in ("agent", "recorded"):
        if key in row:
            check_fields(place, row, {key: str})
            if not row[key]:
                raise DataError(f"{place}: field {key!r} is empty; leave it out")
    agent = row.get("agent") or arguments.get("persona_name") or (before[-1].agent if before else "")
    if not agent:
        raise DataError(f"{place}: nobody knows whose call it is: give it an `agent`")
    return AgentCall(agent, function, arguments, row.get("recorded") or likely_output(function, arguments))
