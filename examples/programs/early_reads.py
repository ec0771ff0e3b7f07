"""Reads what it asked for at once, again and again: run as it stands, each call waits for the one before.

Nothing here needs an answer before the last line, only the way it is written down says so. A graph keeps what really
depends on what: compiled, the calls run side by side, with the same prompts and the same answers.
"""

from __future__ import annotations

import lang
from examples.programs.example import Example

ROLES = ("a doctor", "a cook", "a lawyer", "a teacher", "a sailor", "a poet")


@lang.function
def early_reads(s: lang.ProgramState, question: str) -> list[str]:
    s += f"One question, many answers. {question}\n"
    answers = []
    for role in ROLES:
        with s.copy() as attempt:
            attempt += f"As {role} I say: " + lang.gen("answer", max_tokens=16, stop="\n")
            answers.append(attempt["answer"].strip())
    for role, answer in zip(ROLES, answers):
        s += f"{role} said: {answer}\n"
    s += "The best of them was " + lang.select("best", ROLES)
    return answers


QUESTIONS = [
    "What helps against a cold?",
    "How does one learn to swim?",
    "What makes a good friend?",
    "When is it time to go home?",
    "Why do we tell stories?",
    "What is worth waiting for?",
]
EXAMPLE = Example(early_reads, items=[{"question": question} for question in QUESTIONS])


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
