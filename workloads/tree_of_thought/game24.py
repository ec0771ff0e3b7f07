"""Searches of the Game of 24 (Yao et al., section 4.1): propose next steps, value what is left, go on from the best.

Every call has a prompt of its own behind one of three fixed beginnings; what a search does next depends on the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import lang
from workloads.tree_of_thought.numbers import TARGET, Numbers, Step, as_numbers, gives_24, parsed_step, written

PROPOSE = """Two of the numbers are joined by + - * or / at each step. List possible next steps, one a line.
Input: 2 8 8 14
Possible next steps:
2 + 8 = 10 (left: 8 10 14)
8 / 2 = 4 (left: 4 8 14)
14 + 2 = 16 (left: 8 8 16)
2 * 8 = 16 (left: 8 14 16)
8 - 2 = 6 (left: 6 8 14)
14 - 8 = 6 (left: 2 6 8)
14 / 2 = 7 (left: 7 8 8)
14 - 2 = 12 (left: 8 8 12)
"""
VALUE = """Can the numbers be made into 24 with + - * and /, each used once? Say sure, likely or impossible.
10 14
10 + 14 = 24
sure
11 12
11 + 12 = 23, 12 - 11 = 1, 11 * 12 = 132: none is 24
impossible
4 4 10
4 + 4 + 10 = 18, 4 * 10 - 4 = 36, (10 - 4) * 4 = 24
sure
5 7 8
5 + 7 + 8 = 20, (8 - 5) * 7 = 21: close, the numbers are of the right size
likely
"""
ANSWER = """Write the steps as one expression that gives 24, with each input number once.
Input: 4 4 6 8
Steps:
4 + 8 = 12 (left: 4 6 12)
6 - 4 = 2 (left: 2 12)
2 * 12 = 24 (left: 24)
Answer: (6 - 4) * (4 + 8) = 24
"""
WORTH = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}
"""Of a vote, as in the paper's code."""
N_VOTES = 3


class Recorded(NamedTuple):
    """What was said in a recorded search, by what was asked."""

    proposals: Mapping[str, str]
    """Steps so far (each a line, ended) -> next steps, a line each."""
    votes: Mapping[str, Sequence[str]]
    """Steps -> what each vote ends with. A thought that isn't there was a double, and wasn't asked about."""
    answers: Mapping[str, str]
    """Steps -> expression."""
    said: str = ""
    """For a call that isn't in the record, as when a search is another one than the recorded one."""


@lang.function
def propose(s: lang.ProgramState, left: str, max_tokens: int, recorded: str) -> None:
    s += f"{PROPOSE}Input: {left}\nPossible next steps:\n"
    s += lang.gen("steps", max_tokens=max_tokens, stop="Input", temperature=0.7, recorded=recorded)


@lang.function
def value(s: lang.ProgramState, left: str, max_tokens: int, recorded: Sequence[str]) -> None:
    s += f"{VALUE}{left}\n"
    s += lang.gen("votes", max_tokens=max_tokens, n=N_VOTES, stop="\n\n", temperature=0.7, recorded=recorded)


@lang.function
def answer(s: lang.ProgramState, puzzle: str, steps: str, max_tokens: int, recorded: str) -> None:
    s += f"{ANSWER}Input: {puzzle}\nSteps:\n{steps}Answer:"
    s += lang.gen("answer", max_tokens=max_tokens, stop="\n", temperature=0.7, recorded=recorded)


class Thought(NamedTuple):
    steps: str
    left: Numbers


@lang.function
def breadth_first(
    s: lang.ProgramState, puzzle: str, keep: int, max_tokens: int, recorded: Recorded, follow: bool
) -> str:
    """The `keep` best thoughts of each level go on; the expression of the best of the last one.

    follow: thoughts and values are those recorded, whatever the model says.
    """
    frontier = [Thought("", as_numbers(puzzle))]
    for _ in range(3):
        thoughts = [t for asked in _proposed(frontier, max_tokens, recorded, follow) for t in asked]
        values = _valued(thoughts, max_tokens, recorded, follow)
        best = sorted(range(len(thoughts)), key=lambda i: -values[i])[:keep]  # stable: the first of equals
        frontier = [thoughts[i] for i in best]
    return _answered(puzzle, frontier, max_tokens, recorded, follow)


@lang.function
def depth_first(s: lang.ProgramState, puzzle: str, keep: int, max_tokens: int, recorded: Recorded, follow: bool) -> str:
    """From the likeliest thought on, back when none is left; at most `keep` thoughts of each are looked at.

    What all votes but one call impossible is left.
    """
    open_ = [Thought("", as_numbers(puzzle))]
    while open_:
        thought = open_.pop()
        if len(thought.left) == 1:
            said = _answered(puzzle, [thought], max_tokens, recorded, follow)
            if gives_24(said, puzzle):
                return said
            continue
        (thoughts,) = _proposed([thought], max_tokens, recorded, follow)
        values = _valued(thoughts[:keep], max_tokens, recorded, follow)
        likely = [i for i in range(len(values)) if values[i] > WORTH["likely"] + 2 * WORTH["impossible"]]
        open_ += [thoughts[i] for i in sorted(likely, key=lambda i: values[i])]
    return ""


def _proposed(frontier: Sequence[Thought], max_tokens: int, recorded: Recorded, follow: bool) -> list[list[Thought]]:
    """Asked about side by side. What isn't a step from its thought is left."""
    said = [recorded.proposals.get(thought.steps, recorded.said) for thought in frontier]
    asked = [
        {"left": written(thought.left), "max_tokens": max_tokens, "recorded": text}
        for thought, text in zip(frontier, said, strict=True)
    ]
    texts = said if follow else []
    states = propose.run_batch(asked) if asked else []
    if not follow:
        texts = [state["steps"] for state in states]
    return [_thoughts(thought, text) for thought, text in zip(frontier, texts, strict=True)]


def _thoughts(thought: Thought, text: str) -> list[Thought]:
    steps: list[Step] = []
    for line in text.split("\n"):
        step = parsed_step(line, thought.left)
        if step is not None and step.line not in [one.line for one in steps]:
            steps.append(step)
    return [Thought(f"{thought.steps}{step.line}\n", step.left) for step in steps]


def _valued(thoughts: Sequence[Thought], max_tokens: int, recorded: Recorded, follow: bool) -> list[float]:
    """Side by side. Of thoughts that leave the same numbers the first is asked about, the others are worth nothing."""
    first: dict[Numbers, int] = {}
    for i, thought in enumerate(thoughts):
        first.setdefault(thought.left, i)
    asked = sorted(first.values())
    votes = [recorded.votes.get(thoughts[i].steps, ("impossible",) * N_VOTES) for i in asked]
    arguments = [
        {"left": written(thoughts[i].left), "max_tokens": max_tokens, "recorded": said}
        for i, said in zip(asked, votes, strict=True)
    ]
    states = value.run_batch(arguments) if arguments else []
    values = [0.0] * len(thoughts)
    for i, state, said in zip(asked, states, votes, strict=True):
        values[i] = worth(said if follow else state["votes"])
    return values


def worth(votes: Sequence[str]) -> float:
    """The sum over votes; each says its verdict in its last line."""
    return sum(
        next((w for word, w in WORTH.items() if word in vote.strip().rpartition("\n")[2]), 0.0) for vote in votes
    )


def _answered(puzzle: str, frontier: Sequence[Thought], max_tokens: int, recorded: Recorded, follow: bool) -> str:
    """The expression for the first thought that may be 24, or for the first of all."""
    if not frontier:
        return ""
    done = next((thought for thought in frontier if thought.left == (TARGET,)), frontier[0])
    said = recorded.answers.get(done.steps, recorded.said)
    state = answer.run(puzzle=puzzle, steps=done.steps, max_tokens=max_tokens, recorded=said)
    return str(said if follow else state["answer"]).strip()
