"""Tips one after another in one prompt, then a program of its own for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lang

EXAMPLES = """Give tips for a topic.
1. Tips for sleeping well.
Here are 2 short tips, each of a few words.
Tip 1: Keep to one hour for going to bed.
Tip 2: Leave lamps and screens outside the bedroom.

2. Tips for """
DETAIL = """Explain the tip in detail, in a paragraph, with what to do and why it helps.
Topic: sleeping well
Tip: Keep to one hour for going to bed
In detail: The body learns the hour and grows tired by itself when it comes. Choose one that leaves enough hours before
you must rise, and keep it on free days too. After two weeks it takes no effort any more.

"""


def tips_prompt(topic: str, n_tips: int) -> str:
    return f"{EXAMPLES}{topic}.\nHere are {n_tips} short tips, each of a few words.\n"


def detail_prompt(topic: str, tip: str) -> str:
    return f"{DETAIL}Topic: {topic}\nTip: {tip}\nIn detail:"


@lang.function
def written_out(s: lang.ProgramState, topic: str, tip: str, max_tokens: int, recorded: str) -> None:
    s += detail_prompt(topic, tip)
    s += lang.gen("detail", max_tokens=max_tokens, stop="\n\n", temperature=0, recorded=recorded)


@lang.function
def skeleton(
    s: lang.ProgramState,
    topic: str,
    n_tips: int,
    tip_tokens: int,
    detail_tokens: int,
    tips: Sequence[str],
    details: Sequence[str],
    cut: Callable[[str], str],
) -> str:
    """tips, details: the recorded outputs. cut: as much of a tip as a detail's prompt has room for."""
    s += tips_prompt(topic, n_tips)
    for i in range(n_tips):
        s += f"Tip {i + 1}:"
        s += lang.gen(f"tip{i}", max_tokens=tip_tokens, stop=[".", "\n"], temperature=0, recorded=tips[i])
        s += ".\n"
    batch = [
        {"topic": topic, "tip": cut(s[f"tip{i}"].strip()), "max_tokens": detail_tokens, "recorded": details[i]}
        for i in range(n_tips)
    ]
    return "\n".join(state["detail"].strip() for state in written_out.run_batch(batch))
