"""Conversations and agent sessions of our own."""

from __future__ import annotations

import random

TOPICS = ("bread", "bicycles", "bees", "bridges", "clouds", "kites", "rivers", "lamps")
ASKED = (
    "What should somebody know who begins with {topic}?",
    "Name three common mistakes with {topic} and what to do about each.",
    "I have one afternoon for {topic}. How would you spend it?",
    "Tell me how {topic} have changed in a hundred years.",
)
MORE = (
    "Say it in half as many words.",
    "Which of these points matters most, and why?",
    "Now explain it to a child of six.",
)
PARTS = ("the right tools", "enough time", "a quiet place", "a friend's advice", "good light", "patience", "a plan")
Turn = tuple[str, str | None]


def sample_conversations() -> list[list[Turn]]:
    rng = random.Random("chat sample")
    found = []
    for topic in TOPICS:
        for asked in ASKED[:2]:
            turns: list[Turn] = [(asked.format(topic=topic), _answer(rng, topic))]
            turns += [(more, _answer(rng, topic)) for more in rng.sample(MORE, rng.randint(1, 2))]
            found.append(turns)
    return found


def sample_agents() -> list[list[Turn]]:
    rng = random.Random("agents sample")
    sessions = []
    for i in range(6):
        turns: list[Turn] = [
            (
                f"Task {i}: the program in module_{i}.py prints its numbers in the wrong order. Find out why and mend "
                "it. Answer with one command at a time; its output will be shown to you.\n",
                f"I look at the module first.\ncat module_{i}.py\n",
            )
        ]
        for j in range(rng.randint(3, 6)):
            lines = "\n".join(
                f"{n:3d}  step_{rng.randint(10, 99)} = read(block_{n})" for n in range(1, rng.randint(5, 12))
            )
            turns.append(
                (f"<output {j}>\n{lines}\n</output>\n", f"The order is set elsewhere.\ngrep -n order part_{j}.py\n")
            )
        sessions.append(turns)
    return sessions


def _answer(rng: random.Random, topic: str) -> str:
    told = [f"With {topic} it takes {part}." for part in rng.sample(PARTS, rng.randint(2, 5))]
    return " ".join(told)
