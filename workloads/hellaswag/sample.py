"""A sample in HellaSwag's shape: everyday activities of our own, told step by step. The same every time."""

from __future__ import annotations

import random
from typing import NamedTuple

Row = tuple[str, tuple[str, ...], int]
"""Context, four endings, index of the right one."""


class Activity(NamedTuple):
    name: str
    steps: tuple[str, ...]
    """In their order, each what somebody does."""


PEOPLE = ("A man", "A woman", "The boy", "An old lady", "The girl", "A young man")

ACTIVITIES = (
    Activity(
        "Baking bread",
        (
            "weighs flour and water and pours them into a large bowl.",
            "kneads the dough on the table until it is smooth.",
            "covers the dough with a cloth and lets it rise by the oven.",
            "shapes the risen dough into a loaf and cuts its top with a blade.",
            "takes the brown loaf out of the oven and taps its bottom.",
        ),
    ),
    Activity(
        "Changing a tyre",
        (
            "stops the car at the roadside and looks at the flat wheel.",
            "loosens the nuts of the wheel with a long wrench.",
            "lifts the car with a jack until the wheel hangs free.",
            "pulls the flat wheel off and rolls the spare into its place.",
            "lets the car down and tightens the nuts crosswise.",
        ),
    ),
    Activity(
        "Potting a plant",
        (
            "lays small stones over the hole in a clay pot.",
            "fills the pot halfway with dark soil.",
            "loosens the roots of the seedling and sets it in the middle.",
            "presses more soil around the stem with both thumbs.",
            "waters the plant and puts the pot on the window sill.",
        ),
    ),
    Activity(
        "Painting a fence",
        (
            "scrubs the old boards of the fence with a wire brush.",
            "stirs a can of white paint with a stick.",
            "dips a broad brush and paints the first board from the top down.",
            "works along the fence until every board is white.",
            "closes the can and washes the brush under the garden tap.",
        ),
    ),
    Activity(
        "Playing chess",
        (
            "sets the pieces on their squares and turns the board.",
            "moves a pawn two squares forward and presses the clock.",
            "brings both knights out and castles.",
            "takes the other player's queen with a rook.",
            "says checkmate and shakes hands across the board.",
        ),
    ),
    Activity(
        "Washing a dog",
        (
            "fills a tub with warm water in the yard.",
            "lifts the muddy dog into the tub.",
            "rubs shampoo into the dog's fur until it foams.",
            "rinses the foam off with a watering can.",
            "wraps the dog in a towel, and it shakes itself anyway.",
        ),
    ),
    Activity(
        "Pitching a tent",
        (
            "spreads a groundsheet on a level patch of grass.",
            "fits the poles together and threads them through the sleeves.",
            "bends the poles until the tent stands up.",
            "hammers pegs through the loops at the corners.",
            "pulls the guy lines tight and crawls inside.",
        ),
    ),
    Activity(
        "Sewing a button",
        (
            "finds a button of the right size in a tin.",
            "pushes the end of a thread through the eye of a needle.",
            "holds the button on the shirt and passes the needle through its holes.",
            "winds the thread a few times under the button.",
            "knots the thread on the inside and bites it off.",
        ),
    ),
)


def _rows(rng: random.Random, people: tuple[str, ...]) -> list[Row]:
    """Every activity, cut after one step to three, with every person."""
    rows = []
    for person in people:
        for activity in ACTIVITIES:
            for told in range(1, 4):
                others = rng.sample([other for other in ACTIVITIES if other is not activity], 3)
                endings = [activity.steps[told], *(rng.choice(other.steps) for other in others)]
                right = endings[0]
                rng.shuffle(endings)
                pronoun = "she" if person in ("A woman", "An old lady", "The girl") else "he"
                story = " ".join(
                    f"{person if i == 0 else 'Then ' + pronoun} {step}" for i, step in enumerate(activity.steps[:told])
                )
                rows.append((f"{activity.name}: {story} {pronoun}", tuple(endings), endings.index(right)))
    rng.shuffle(rows)
    return rows


def sample_items() -> list[Row]:
    return _rows(random.Random("hellaswag sample"), PEOPLE[:4])


def warmup_items(n_shots: int = 20, n: int = 4) -> tuple[list[Row], list[Row]]:
    """Examples and `n` items that aren't in the sample."""
    rows = _rows(random.Random("hellaswag warm-up"), PEOPLE[4:])
    return rows[:n_shots], rows[n_shots : n_shots + n]
