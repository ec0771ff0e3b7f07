"""Each dimension is judged in a branch; then all judgments lead to a mark."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lang

DIMENSIONS = {
    "clarity": "Is every sentence understood at once? Say which aren't, and why.",
    "originality": "What in it has not been said a hundred times before?",
    "evidence": "Which claims are backed by a fact or a source, and which are only claimed?",
    "structure": "Does each paragraph follow from the one before? Where does the thread break?",
    "accuracy": "Is anything in it wrong, or true only in part?",
    "usefulness": "Who could do something after reading it that they couldn't before?",
}


MARK_TOKENS = 2


def article_prompt(article: str) -> str:
    return f"Read this article. It will be judged afterwards.\n\n{article}\n\n"


def dimension_prompt(dimension: str) -> str:
    return f"Judge its {dimension}. {DIMENSIONS[dimension]} End with the word END.\nJudgment:"


def merge_prompt(dimensions: Sequence[str], judgments: Sequence[str]) -> str:
    """What stands behind the article when all judgments are there."""
    told = "".join(f"{name}: {judgment.strip()}\n" for name, judgment in zip(dimensions, judgments, strict=True))
    return f"It was judged like this:\n{told}From all of this, a mark between 1 (poor) and 10 (excellent):"


@lang.function
def judge(
    s: lang.ProgramState,
    article: str,
    dimensions: Sequence[str],
    max_tokens: int,
    judgments: Sequence[str],
    mark: str,
    cut: Callable[[str], str],
) -> str:
    """judgments, mark: the recorded outputs. cut: as much of a judgment as the last prompt has room for."""
    s += article_prompt(article)
    branches = s.fork(len(dimensions))
    for i, (branch, dimension) in enumerate(zip(branches, dimensions)):
        branch += dimension_prompt(dimension)
        branch += lang.gen("judgment", max_tokens=max_tokens, stop="END", temperature=0, recorded=judgments[i])
    branches.join()
    s += merge_prompt(dimensions, [cut(judgment) for judgment in s["judgment"]])
    s += lang.gen("mark", max_tokens=MARK_TOKENS, temperature=0, recorded=mark)
    return str(s["mark"]).strip()
