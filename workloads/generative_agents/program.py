"""One agent's calls, one after another: what it does next depends on the last."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.generative_agents.town import LIMITS, AgentCall


@lang.function
def call_of(s: lang.ProgramState, prompt: str, function: str, answer: str) -> None:
    s += prompt
    s += lang.gen(function, max_tokens=LIMITS[function], temperature=0, stop="\n", recorded=answer)


@lang.function
def agent(s: lang.ProgramState, calls: Sequence[AgentCall]) -> list[str]:
    said = []
    for call in calls:
        state = call_of.run(prompt=call.prompt, function=call.function, answer=call.answer)
        said.append(str(state[call.function]))
    return said
