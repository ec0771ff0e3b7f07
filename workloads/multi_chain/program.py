"""Chains of thought side by side, each in its own style, then one answer from all of them."""

from __future__ import annotations

from collections.abc import Sequence

import lang

STYLES = (
    "Think it through one step after another.",
    "First list what is known, then what is asked, then work it out.",
    "Write an equation for the unknown and solve it.",
    "Explain it as a patient teacher would to a child.",
    "Make a rough guess first, then compute it exactly and compare.",
    "Solve it backwards: start from what is asked.",
)


@lang.function
def multi_chain(
    s: lang.ProgramState,
    question: str,
    n_chains: int,
    max_tokens: int,
    temperature: float,
    chains: Sequence[str],
    answer: str,
) -> None:
    """chains, answer: the recorded outputs."""
    s += f"Question: {question}\n"
    branches = s.fork(n_chains)
    for i, branch in enumerate(branches):
        branch += f"{STYLES[i % len(STYLES)]}\nAnswer:"
        branch += lang.gen("chain", max_tokens=max_tokens, stop="Question", temperature=temperature, recorded=chains[i])
    branches.join()
    s += "Several people have answered this question:\n"
    for i in range(n_chains):
        s += f"Answer {i + 1}:{s['chain'][i].rstrip()}\n"
    s += "Taking them together, the number asked for is"
    s += lang.gen("answer", max_tokens=16, stop="\n", temperature=temperature, recorded=answer)
