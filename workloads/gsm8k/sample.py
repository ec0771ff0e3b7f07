"""Word problems of our own in GSM8K's form: two to four steps, worked out."""

from __future__ import annotations

import random

NAMES = ("Ada", "Ben", "Chloe", "Dario", "Esra", "Femi", "Greta", "Hugo")
GOODS = ("apples", "pencils", "marbles", "stamps", "shells", "cards", "buttons", "beads")
Row = tuple[str, str]
"""(question, solution)"""


def sample_problems(split: str) -> list[Row]:
    """32 of the training split, 24 of the test split; no problem is in both."""
    rng = random.Random(f"gsm8k sample {split}")
    names = NAMES[:4] if split == "train" else NAMES[4:]
    return [_problem(rng, names) for _ in range(32 if split == "train" else 24)]


def warmup_problems() -> list[Row]:
    """In neither split."""
    rng = random.Random("gsm8k warm-up")
    return [_problem(rng, ("Zoe", "Yann")) for _ in range(12)]


def _problem(rng: random.Random, names: tuple[str, ...]) -> Row:
    name, goods = rng.choice(names), rng.choice(GOODS)
    bags, each, lost, price = rng.randint(2, 9), rng.randint(3, 12), rng.randint(1, 5), rng.randint(2, 6)
    have = bags * each
    left = have - lost
    question = (
        f"{name} fills {bags} bags with {each} {goods} each. On the way to the market {lost} of the {goods} are lost. "
    )
    told = [
        f"At first {name} has {bags} * {each} = <<{bags}*{each}={have}>>{have} {goods}.",
        f"After the way there are {have} - {lost} = <<{have}-{lost}={left}>>{left} {goods} left.",
    ]
    if rng.random() < 0.5:
        return f"{question}How many {goods} are left?", "\n".join([*told, f"#### {left}"])
    earned = left * price
    told.append(f"They bring in {left} * {price} = <<{left}*{price}={earned}>>{earned} coins.")
    asked = f"{question}The others are sold for {price} coins each. How many coins does {name} earn?"
    return asked, "\n".join([*told, f"#### {earned}"])
