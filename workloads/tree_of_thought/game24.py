"""Searches of the Game of 24 (Yao et al., section 4.1): propose next steps, value what is left, go on from the best.

Every call has a prompt of its own behind one of three fixed beginnings; what a search does next depends on the values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import lang
from workloads.tree_of_thought.numbers import TARGET, Numbers, as_numbers, gives_24, parsed_step, written

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
LONGEST = max(PROPOSE, VALUE, ANSWER, key=len) + "Input: 10 11 12 13\nPossible next steps:\n"
N_OUTPUTS = 4
"""Three steps that were written before, and the expression for them: so many end up in one prompt."""
WORTH = {"sure": 20.0, "likely": 1.0, "impossible": 0.001}
"""Of a vote, as in the paper's code."""
N_VOTES = 3


class Recorded(NamedTuple):
    """What was said in a recorded search, by what was asked."""

    proposals: Mapping[str, str]
    """Steps so far (each a line, ended) -> next steps, a line each."""
    votes: Mapping[str, Sequence[str]]
    """Steps -> what each vote ends with. A thought that isn't there wasn't asked about, and is worth nothing."""
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


class Valued(NamedTuple):
    thought: Thought
    value: float


@lang.function
def breadth_first(
    s: lang.ProgramState, puzzle: str, keep: int, max_tokens: int, recorded: Recorded, follow: bool
) -> str:
    """The `keep` best thoughts of each level go on; the expression of the best of the last one.

    follow: thoughts and values are those recorded, whatever the model says.
    """
    frontier = [Thought("", as_numbers(puzzle))]
    for _ in range(3):
        grown = _grown(frontier, None, max_tokens, recorded, follow)
        best = sorted(grown, key=lambda one: -one.value)[:keep]  # stable: the first of equals
        frontier = [one.thought for one in best]
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
        grown = _grown([thought], keep, max_tokens, recorded, follow)
        likely = [one for one in grown if one.value > WORTH["likely"] + 2 * WORTH["impossible"]]
        open_ += [one.thought for one in sorted(likely, key=lambda one: one.value)]
    return ""


def _grown(
    frontier: Sequence[Thought], most: int | None, max_tokens: int, recorded: Recorded, follow: bool
) -> list[Valued]:
    """What is proposed for each of the frontier (at most so many for one), with its value.

    All thoughts are asked about side by side, and what is proposed for one is valued while others are still awaited.
    What the same numbers are left of is asked about once and has one value, as in the paper's code.
    """
    proposals = [recorded.proposals.get(thought.steps, recorded.said) for thought in frontier]
    asked = [
        propose(left=written(thought.left), max_tokens=max_tokens, recorded=text)
        for thought, text in zip(frontier, proposals, strict=True)
    ]
    thoughts: list[Thought] = []
    calls: dict[Numbers, lang.ProgramState] = {}
    for thought, state, text in zip(frontier, asked, proposals, strict=True):
        said = state["steps"]
        for grown in _thoughts(thought, text if follow else said, exact=not follow)[:most]:
            thoughts.append(grown)
            votes = recorded.votes.get(grown.steps)
            if grown.left not in calls and (votes is not None or not follow):
                votes = votes or ("impossible",) * N_VOTES
                calls[grown.left] = value(left=written(grown.left), max_tokens=max_tokens, recorded=votes)
    cast = {left: state["votes"] for left, state in calls.items()}
    if follow:
        return [Valued(thought, worth(recorded.votes.get(thought.steps, ()))) for thought in thoughts]
    return [Valued(thought, worth(cast[thought.left])) for thought in thoughts]


def _thoughts(thought: Thought, text: str, exact: bool) -> list[Thought]:
    """One for each line that is a step; exact: from the thought's own numbers, without a slip of the pen."""
    lines = dict.fromkeys(line.strip() for line in text.split("\n"))
    steps = [step for line in lines if (step := parsed_step(line, thought.left if exact else None)) is not None]
    return [Thought(f"{thought.steps}{step.line}\n", step.left) for step in steps]


def worth(votes: Sequence[str]) -> float:
    """The sum over votes; each says its verdict in its last line."""
    return sum(
        next((w for word, w in WORTH.items() if word in vote.strip().rpartition("\n")[2]), 0.0) for vote in votes
    )


def _answered(puzzle: str, frontier: Sequence[Thought], max_tokens: int, recorded: Recorded, follow: bool) -> str:
    """Expressions for all thoughts that may be 24, side by side, or for the first where none is; the first right one.

    As in the paper, a puzzle is solved if one of those that were kept solves it; where none does, the first is given.
    """
    done = [thought for thought in frontier if thought.left == (TARGET,)] or frontier[:1]
    said = [recorded.answers.get(thought.steps, recorded.said) for thought in done]
    asked = [
        answer(puzzle=puzzle, steps=thought.steps, max_tokens=max_tokens, recorded=text)
        for thought, text in zip(done, said, strict=True)
    ]
    texts = [state["answer"] for state in asked]
    given = [text.strip() for text in (said if follow else texts)]
    return next((one for one in given if gives_24(one, puzzle)), given[0] if given else "")
