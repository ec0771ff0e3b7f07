"""Each dimension is judged in a branch; then all judgments lead to a mark."""

from __future__ import annotations

from collections.abc import Sequence

import lang

DIMENSIONS = {
    "clarity": "Is every sentence understood at once? Say which aren't, and why.",
    "originality": "What in it has not been said a hundred times before?",
    "evidence": "Which claims are backed by a fact or a source, and which are only claimed?",
    "structure": "Does each paragraph follow from the one before? Where does the thread break?",
    "accuracy": "Is anything in it wrong, or true only in part?",
    "usefulness": "Who could do something after reading it that they couldn't before?",
}


@lang.function
def judge(
    s: lang.ProgramState,
    article: str,
    dimensions: Sequence[str],
    max_tokens: int,
    judgments: Sequence[str],
    mark: str,
) -> str:
    """judgments, mark: the recorded outputs."""
    s += f"Read this article. It will be judged afterwards.\n\n{article}\n\n"
    branches = s.fork(len(dimensions))
    for i, (branch, dimension) in enumerate(zip(branches, dimensions)):
        branch += f"Judge its {dimension}. {DIMENSIONS[dimension]} End with the word END.\nJudgment:"
        branch += lang.gen("judgment", max_tokens=max_tokens, stop="END", temperature=0, recorded=judgments[i])
    branches.join()
    s += "It was judged like this:\n"
    for dimension, judgment in zip(dimensions, s["judgment"]):
        s += f"{dimension}: {judgment.strip()}\n"
    s += "From all of this, a mark between 1 (poor) and 10 (excellent):"
    s += lang.gen("mark", max_tokens=2, temperature=0, recorded=mark)
    return str(s["mark"]).strip()
