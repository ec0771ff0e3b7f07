"""A small world of rivers, towns and people, and questions about it that take two or three pages to answer."""

from __future__ import annotations

import random

PEOPLE = (
    "Alma Reyes",
    "Boris Lund",
    "Carla Meier",
    "Denis Okoye",
    "Edna Pace",
    "Farid Haddad",
    "Gwen Price",
    "Ilja Novak",
)
TOWNS = ("Arlen", "Brovik", "Corvane", "Dunmere", "Estral", "Fosser", "Galdo", "Harrow Bay")
RIVERS = ("Amber", "Brine", "Cold Water", "Dove", "Elder", "Fennel", "Grey", "Heron")
WORKS = (
    "a painter of coasts",
    "a builder of bridges",
    "a singer",
    "a botanist",
    "a clockmaker",
    "a poet",
    "a surgeon",
    "a pilot",
)
Page = tuple[str, tuple[str, ...]]
Task = tuple[str, str, tuple[str, ...]]
Turn = tuple[str, str, str]


def _world() -> tuple[list[Task], list[Page]]:
    rng = random.Random("react sample")
    pages: list[Page] = []
    tasks: list[Task] = []
    for i, (person, town, river) in enumerate(zip(PEOPLE, TOWNS, RIVERS)):
        born, length, people = rng.randint(1850, 1980), rng.randint(40, 900), rng.randint(2, 90)
        pages.append(
            (
                person,
                (
                    f"{person} (born {born}) is {WORKS[i]}.",
                    f"{person} was born in {town} and has lived there since.",
                    f"The best known work of {person} was shown in {rng.randint(born + 20, born + 60)}.",
                ),
            )
        )
        pages.append(
            (
                town,
                (
                    f"{town} is a town of {people},000 people on the river {river}.",
                    f"Its market hall was built in {rng.randint(1700, 1900)}.",
                    f"{town} is known for its {rng.choice(('glass', 'wool', 'salt', 'cider'))}.",
                ),
            )
        )
        pages.append(
            (
                f"{river} (river)",
                (
                    f"The {river} is a river of {length} kilometres.",
                    f"It flows through {town} and ends in the sea.",
                    f"In its upper part there are {rng.randint(2, 9)} mills.",
                ),
            )
        )
        tasks.append(
            (
                f"How long, in kilometres, is the river on which the birthplace of {person} lies?",
                str(length),
                (person, town, f"{river} (river)"),
            )
        )
        tasks.append((f"How many people live in the town where {person} was born?", f"{people},000", (person, town)))
    return tasks, pages


def sample_tasks() -> tuple[list[Task], list[Page]]:
    """Questions that aren't among the six examples, and all pages."""
    tasks, pages = _world()
    return tasks[6:], pages


def sample_chains() -> list[tuple[str, list[Turn]]]:
    """As one who knows where to look would go about the sample's questions."""
    tasks, pages = _world()
    return [_chain(task, dict(pages)) for task in tasks[6:]]


def sample_examples() -> str:
    """Six solved questions, of about the length of the published ones."""
    tasks, pages = _world()
    told = [_told(*_chain(task, dict(pages))) for task in tasks[:6]]
    return "\n".join(told) + "\n"


def _chain(task: Task, pages: dict[str, tuple[str, ...]]) -> tuple[str, list[Turn]]:
    question, answer, gold = task
    turns = [
        (
            f"I need to search {title} and find what the question needs of it."
            if i == 0
            else f"That leads to {title}, which I have to search next.",
            f"Search[{title}]",
            " ".join(pages[title]),
        )
        for i, title in enumerate(gold)
    ]
    turns.append((f"Now I know it: the answer is {answer}.", f"Finish[{answer}]", "Episode finished"))
    return question, turns


def _told(question: str, turns: list[Turn]) -> str:
    lines = [f"Question: {question}"]
    for i, (thought, action, observation) in enumerate(turns, 1):
        lines += [f"Thought {i}: {thought}", f"Action {i}: {action}"]
        lines += [f"Observation {i}: {observation}"] if not action.startswith("Finish") else []
    return "\n".join(lines)
