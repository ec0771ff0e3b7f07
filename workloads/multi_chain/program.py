"""Chains of thought side by side, each in its own style, then one answer from all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lang

STYLES = (
    "Think it through one step after another.",
    "First list what is known, then what is asked, then work it out.",
    "Write an equation for the unknown and solve it.",
    "Explain it as a patient teacher would to a child.",
    "Make a rough guess first, then compute it exactly and compare.",
    "Solve it backwards: start from what is asked.",
)


ANSWER_TOKENS = 16


@lang.function
def multi_chain(
    s: lang.ProgramState,
    question: str,
    n_chains: int,
    max_tokens: int,
    temperature: float,
    chains: Sequence[str],
    answer: str,
    cut: Callable[[str], str],
) -> None:
    """chains, answer: the recorded outputs. cut: as much of a chain as the last prompt has room for."""
    s += f"Question: {question}\n"
    branches = s.fork(n_chains)
    for i, branch in enumerate(branches):
        branch += f"{STYLES[i % len(STYLES)]}\nAnswer:"
        branch += lang.gen("chain", max_tokens=max_tokens, stop="Question", temperature=temperature, recorded=chains[i])
    branches.join()
    s += merged([cut(s["chain"][i]) for i in range(n_chains)])
    s += lang.gen("answer", max_tokens=ANSWER_TOKENS, stop="\n", temperature=0, recorded=answer)


def merged(chains: Sequence[str]) -> str:
    """What follows the question in the last prompt."""
    told = "".join(f"Answer {i}:{chain.rstrip()}\n" for i, chain in enumerate(chains, 1))
    return f"Several people have answered this question:\n{told}Taking them together, the number asked for is"
