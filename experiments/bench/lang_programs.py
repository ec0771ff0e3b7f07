"""Programs whose calls are parallel in part: tree of thought, branch-solve-merge, and a batch with a late instruction.

Each call ends after a fixed number of tokens, so that every way of running a program does comparable work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import lang as sgl

BRANCHES = 3
TASKS = (
    "Seat seven guests at a round table so that no two who argued last year sit side by side.",
    "Move a piano up a narrow staircase with four people and a rope of ten metres.",
    "Plan one day in a town with two museums, a market that closes at noon, and rain after four.",
    "Bake bread for twenty with one small oven and three hours until supper.",
    "Find out which of nine coins is lighter than the others with two weighings.",
    "Share a garden between three families, one of which grows trees that cast a shadow.",
    "Teach a class of thirty to swim with one short lane and two teachers.",
    "Carry water to a field on a hill with two buckets, one of which leaks.",
)
GUIDE = (
    "Work step by step. Say what is given before you say what follows. Name every assumption, and check at the end "
    "that each condition of the task holds. "
)
DIMENSIONS = ("clarity", "evidence", "structure")


@sgl.pure
def most_frequent(votes: Sequence[str]) -> str:
    return Counter(votes).most_common(1)[0][0]


@sgl.function
def tree_of_thought(s: Any, task: Any) -> None:
    """Propose, evaluate, vote: the votes are asked for after the same prompt."""
    s += GUIDE + "Task: " + task
    plans = s.fork(BRANCHES)
    plans += lambda i: f"\nPlan {i + 1}: " + sgl.gen("plan", max_tokens=24, ignore_eos=True)
    plans += "\nIn this plan, what may go wrong: " + sgl.gen("risk", max_tokens=8, ignore_eos=True)
    plans += "\nThe plan is " + sgl.select(
        "worth", ["sure to work", "likely to work", "impossible"], choices_method="greedy_token_selection"
    )
    plans.join()
    for i in range(BRANCHES):
        s += f"\nPlan {i + 1}: " + s["plan"][i] + "\nIt is " + s["worth"][i]
    voters = s.fork(BRANCHES)
    voters += "\nThe best is plan number " + sgl.select("vote", ["1", "2", "3"])
    voters.join()
    s += "\nChosen: plan " + sgl.apply(most_frequent, s["vote"]) + "\n"
    s += sgl.gen("heading", max_tokens=16, regex="Solution: ") + sgl.gen("solution", max_tokens=24, ignore_eos=True)


@sgl.function
def judge(s: Any, task: Any) -> None:
    """Branch-solve-merge: an essay is judged in each dimension, then as a whole. Nobody reads the remarks."""
    s += GUIDE + "An essay on this: " + task
    s += "\nThe essay: " + sgl.gen("essay", max_tokens=32, ignore_eos=True)
    branches = s.fork(len(DIMENSIONS))
    branches += [f"\nJudge its {dimension}: " for dimension in DIMENSIONS]
    branches += sgl.gen("judgment", max_tokens=16, ignore_eos=True)
    branches += "\nThe mark: " + sgl.select("mark", ["A", "B", "C"], choices_method="greedy_token_selection")
    branches += "\nA remark for the archive: " + sgl.gen(max_tokens=16, ignore_eos=True)
    branches.join()
    for i, dimension in enumerate(DIMENSIONS):
        s += f"\n{dimension}: " + s["judgment"][i] + ", mark " + s["mark"][i]
    s += (
        "\n" + sgl.gen("heading", max_tokens=16, regex="Verdict: ") + sgl.gen("verdict", max_tokens=16, ignore_eos=True)
    )


@sgl.function
def asked_first(s: Any, task: Any) -> None:
    """The question comes before the instructions, which are the same in each run and say that they may move."""
    s += "Task: " + task + "\n"
    s += sgl.movable(GUIDE * 2 + "\n")
    s += "Answer: " + sgl.gen("answer", max_tokens=16, ignore_eos=True)


PROGRAMS = {"tree of thought": tree_of_thought, "judge": judge}
READ = {
    "tree of thought": ("plan", "worth", "vote", "heading", "solution"),
    "judge": ("essay", "judgment", "mark", "heading", "verdict"),
}
"""The variables that are compared, with the text."""
