"""GSM8K by a tree of messages: each level asks for something, and each answer branches again.

`plan, execute, reflect` with three branches is the paper's tree (3 + 9 + 27 calls a question); with `answer` behind it
and two branches, the deep one (2 + 4 + 8 + 16).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import lang
from workloads.gsm8k.data import Problem, last_number

LEVELS = {
    "plan": "Write a short plan for answering this question. Don't compute anything yet.\nQuestion: {question}",
    "execute": "The plan is good. Carry it out with the numbers of the question, one step after another.",
    "reflect": "Look at your work again. Is any step wrong? Correct what is, and say what the result is then.",
    "answer": "So what is the answer to the question? Give one number.",
}
"""What is asked on each level, in order."""


@lang.function
def plans(
    s: lang.ProgramState,
    question: str,
    levels: Sequence[str],
    n_branches: int,
    max_tokens: int,
    temperature: float,
    recorded: Sequence[str],
) -> str:
    """The number that most leaves end with. recorded: an output for each call, in the order of `paths`."""
    outputs = dict(zip(paths(len(levels), n_branches), recorded, strict=True))
    leaves: dict[tuple[int, ...], lang.ProgramState] = {(): s}
    for level in levels:
        grown: dict[tuple[int, ...], lang.ProgramState] = {}
        for path, state in leaves.items():
            state += lang.user(LEVELS[level].format(question=question))
            for i, branch in enumerate(state.fork(n_branches)):
                here = (*path, i)
                call = lang.gen(level, max_tokens=max_tokens, temperature=temperature, recorded=outputs[here])
                branch += lang.assistant(call)
                grown[here] = branch
        leaves = grown
    return majority([last_number(leaf[levels[-1]]) for leaf in leaves.values()])


def paths(depth: int, n_branches: int) -> list[tuple[int, ...]]:
    """Of every call of a tree, level by level: (branch of the first level, of the second, ...)."""
    found: list[tuple[int, ...]] = []
    level: list[tuple[int, ...]] = [()]
    for _ in range(depth):
        level = [(*path, i) for path in level for i in range(n_branches)]
        found += level
    return found


def majority(numbers: Sequence[str]) -> str:
    """The most frequent that isn't empty, the first of equals; empty when all are."""
    votes = Counter(number for number in numbers if number)
    return votes.most_common(1)[0][0] if votes else ""


def recorded_outputs(problem: Problem, levels: Sequence[str], n_branches: int) -> list[str]:
    """An output for each call: the published solution's steps, told so that no two branches begin alike."""
    return [_told(problem, levels[len(path) - 1], path) for path in paths(len(levels), n_branches)]


def _told(problem: Problem, level: str, path: tuple[int, ...]) -> str:
    number = ".".join(str(i + 1) for i in path)
    steps = problem.steps
    if level == "plan":
        last = " ".join(steps[0].split()[:12])
        return f"Plan {number}: take the question apart into {len(steps)} steps. Begin with this: {last} ..."
    if level == "execute":
        return f"Way {number}. " + " ".join(steps) + f" The result is {problem.answer}."
    if level == "reflect":
        checked = steps[path[-1] % len(steps)]
        return f"Check {number}. I look at this again: {checked} It holds, so the result is {problem.answer}."
    return f"({number}) The answer is {problem.answer}."
