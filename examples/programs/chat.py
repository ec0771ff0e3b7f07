"""A chat of four turns. Each turn's prompt is the one before with its answer, so all of it is in the cache.

The paper has short answers (4 to 8 tokens, always that many) and long ones (256 to 512; here 48, for a small CPU).
How long they are is a value of the call, so `max_tokens` is a static argument: a graph for each of its values.
"""

from __future__ import annotations

from collections.abc import Sequence

import lang
from examples.programs.example import Example

N_TURNS = 4
SHORT, LONG = 6, 48


@lang.function
def chat(s: lang.ProgramState, questions: Sequence[str], max_tokens: int) -> list[str]:
    s += lang.system("You are brief.")
    answers = []
    for turn in range(N_TURNS):
        s += lang.user(questions[turn])
        s += lang.assistant(lang.gen("answer", max_tokens=max_tokens, ignore_eos=True))
        answers.append(s["answer"])
    return answers


TALKS = [
    ["Who are you?", "What can you do?", "Can you do it faster?", "Thank you."],
    ["What is a cache?", "What does it keep?", "And when it is full?", "Who decides that?"],
    ["I have a cold.", "What helps?", "And honey?", "How much of it?"],
]
EXAMPLE = Example(
    chat,
    items=[{"questions": talk, "max_tokens": max_tokens} for max_tokens in (SHORT, LONG) for talk in TALKS],
    static=["max_tokens"],
)


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
