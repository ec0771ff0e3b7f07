"""An agent's calls, one after another, each with a prompt of its own."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.generative_agents.data import AgentCall
from workloads.generative_agents.functions import FUNCTIONS, prompt_of


@lang.function
def one_call(
    s: lang.ProgramState, prompt: str, max_tokens: int, stop: str | None, temperature: float, recorded: str
) -> None:
    s += prompt
    s += lang.gen("output", max_tokens=max_tokens, stop=stop, temperature=temperature, recorded=recorded)


@lang.function
def calls_in_order(s: lang.ProgramState, calls: Sequence[AgentCall], temperature: float) -> list[str]:
    """What came out of each. The next call waits for it: the agent (or the town) acts on it."""
    said = []
    for call in calls:
        function = FUNCTIONS[call.function]
        state = one_call.run(
            prompt=prompt_of(call.function, call.arguments),
            max_tokens=function.max_tokens,
            stop=function.stop,
            temperature=temperature,
            recorded=call.recorded,
        )
        said.append(str(state["output"]))
    return said
