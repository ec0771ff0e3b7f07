"""Thought, action, observation, and again: replayed from a record, or lived."""

from __future__ import annotations

from collections.abc import Sequence

import lang
from workloads.react.data import Turn
from workloads.react.tools import Desk, Library, parsed_action

INSTRUCTION = (
    "Answer the question in turns of Thought, Action and Observation. A Thought says what is known and what isn't. "
    "An Action is one of Search[title], which shows the beginning of the page with that title or else titles like it; "
    "Lookup[word], which shows the next sentence with that word on the page last shown; and Finish[answer], which ends "
    "the task. Here are some examples.\n"
)
LAST = Turn("I have seen what there is to see and will answer now.", "Finish[unknown]", "")
"""Said in the generation that the paper's script makes behind the last recorded turn."""


def said(i: int, turn: Turn) -> str:
    """What the model says in its i-th turn, behind `Thought i:`."""
    return f" {turn.thought or 'I go on.'}\nAction {i}: {turn.action}\n"


@lang.function
def replay(s: lang.ProgramState, examples: str, question: str, turns: Sequence[Turn], max_tokens: int) -> None:
    """Each recorded turn is asked for and stays; its observation follows."""
    s += f"{INSTRUCTION}{examples}Question: {question}\n"
    for i, turn in enumerate(turns, 1):
        s += f"Thought {i}:"
        s += lang.gen(f"turn{i}", max_tokens=max_tokens, stop="Observation", temperature=0, recorded=said(i, turn))
        if not turn.action.startswith("Finish"):
            s += f"Observation {i}: {turn.observation}\n"


@lang.function
def replay_as_in_the_paper(
    s: lang.ProgramState, examples: str, question: str, turns: Sequence[Turn], max_tokens: int
) -> None:
    """What is generated is thrown away and the record appended, once for each turn, and generated once more."""
    s += f"{INSTRUCTION}{examples}Question: {question}\n"
    for i, turn in enumerate((*turns, LAST), 1):
        branch = s.fork(1)
        branch += lang.gen(
            f"turn{i}",
            max_tokens=max_tokens,
            stop="Observation",
            temperature=0,
            recorded=f"Thought {i}:{said(i, turn)}",
        )
        branch.join()
        s.sync()
        if turn is not LAST:
            s += f"Thought {i}:{said(i, turn)}Observation {i}: {turn.observation}\n"


@lang.function
def agent(
    s: lang.ProgramState,
    examples: str,
    question: str,
    library: Library,
    max_steps: int,
    max_tokens: int,
    tool_seconds: float,
    recorded: Sequence[Turn],
    follow: bool,
) -> str:
    """The answer; empty when the steps ran out. follow: actions are the recorded ones, whatever the model says."""
    s += f"{INSTRUCTION}{examples}Question: {question}\n"
    desk = Desk(library)
    for i in range(1, max_steps + 1):
        turn = recorded[min(i, len(recorded)) - 1]
        s += f"Thought {i}:"
        s += lang.gen(f"turn{i}", max_tokens=max_tokens, stop="Observation", temperature=0, recorded=said(i, turn))
        action = parsed_action(turn.action if follow else s[f"turn{i}"])
        if follow:
            s.sync()
        if action is not None and action.name == "finish":
            return action.argument
        if tool_seconds:
            s.sleep(tool_seconds)
        s += f"Observation {i}: {desk.act(action)}\n"
    return ""
