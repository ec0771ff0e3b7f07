"""A sample in MMLU's shape, of questions that our own code makes up. The same every time."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from itertools import pairwise

Item = tuple[str, str, tuple[str, ...], str]
"""Subject, question, four choices, letter of the right one."""
Maker = Callable[[random.Random], tuple[str, str, list[str]]]
"""Question, right answer, three wrong ones."""

QUESTIONS = {"dev": 5, "test": 40}
"""A subject."""


def _options(rng: random.Random, right: str, wrong: Sequence[str]) -> tuple[tuple[str, ...], str]:
    options = [right, *wrong]
    rng.shuffle(options)
    return tuple(options), "ABCD"[options.index(right)]


def _near(rng: random.Random, right: int) -> list[str]:
    """Three other numbers, not far from the right one."""
    return [str(n) for n in rng.sample([right + d for d in (-11, -10, -9, -2, -1, 1, 2, 9, 10, 11)], 3)]


def _arithmetic(rng: random.Random) -> tuple[str, str, list[str]]:
    boxes, pens, lost = rng.randint(12, 48), rng.randint(12, 36), rng.randint(3, 11)
    right = boxes * pens - lost
    return (
        f"A shop receives {boxes} boxes with {pens} pens in each box, and {lost} of all these pens turn out to be "
        "broken. How many pens can it sell?",
        str(right),
        _near(rng, right),
    )


def _calendar(rng: random.Random) -> tuple[str, str, list[str]]:
    days = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
    start, later = rng.randrange(7), rng.randint(8, 90)
    right = days[(start + later) % 7]
    return (
        f"A ship leaves its harbour on a {days[start]} and comes back exactly {later} days later. "
        "On which day of the week does it come back?",
        right,
        rng.sample([day for day in days if day != right], 3),
    )


def _ordering(rng: random.Random) -> tuple[str, str, list[str]]:
    people = rng.sample(["Ada", "Boris", "Chen", "Dalia", "Emil", "Farah", "Goran", "Hana", "Ivo", "Jun"], 4)
    facts = [f"{taller} is taller than {shorter}" for taller, shorter in pairwise(people)]
    rng.shuffle(facts)
    ask, right = rng.choice([("tallest", people[0]), ("shortest", people[-1]), ("second tallest", people[1])])
    return (
        f"Statement 1 | {facts[0]}. Statement 2 | {facts[1]}. Statement 3 | {facts[2]}. "
        f"Who is the {ask} of the four people named?",
        right,
        [person for person in people if person != right],
    )


def _programming(rng: random.Random) -> tuple[str, str, list[str]]:
    first, step, n = rng.randint(1, 9), rng.randint(2, 7), rng.randint(4, 12)
    right = sum(range(first, first + step * n, step))
    return (
        f"What does this Python 3 expression evaluate to: sum(range({first}, {first + step * n}, {step}))?",
        str(right),
        _near(rng, right),
    )


SUBJECTS: dict[str, Maker] = {
    "sample_arithmetic": _arithmetic,
    "sample_calendar": _calendar,
    "sample_ordering": _ordering,
    "sample_programming": _programming,
}


def sample_questions(split: str) -> list[Item]:
    """All subjects; no question twice, in either split."""
    items = []
    for subject, make in SUBJECTS.items():
        rng = random.Random(f"mmlu sample {subject}")
        questions = _distinct(subject, make, rng, sum(QUESTIONS.values()))
        items += questions[: QUESTIONS["dev"]] if split == "dev" else questions[QUESTIONS["dev"] :]
    return items


def warmup_questions(n: int = 8) -> tuple[list[Item], list[Item]]:
    """Examples and `n` questions that aren't in the sample."""
    rng = random.Random("mmlu warm-up")
    taken = {question for split in QUESTIONS for _, question, _, _ in sample_questions(split)}
    each = [_distinct("warm-up", make, rng, -(-(5 + n) // len(SUBJECTS)), taken) for make in SUBJECTS.values()]
    items = [item for group in zip(*each) for item in group]
    return items[:5], items[5 : 5 + n]


def _distinct(subject: str, make: Maker, rng: random.Random, n: int, taken: Collection[str] = ()) -> list[Item]:
    found: dict[str, Item] = {}
    while len(found) < n:
        question, right, wrong = make(rng)
        if question not in taken:
            found.setdefault(question, (subject, question, *_options(rng, right, wrong)))
    return list(found.values())
