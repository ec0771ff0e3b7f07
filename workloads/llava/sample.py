"""Questions in LLaVA-Bench's shape about pictures that our own code draws. The same every time."""

from __future__ import annotations

import io
import random
from typing import NamedTuple

from PIL import Image, ImageDraw

PICTURES = 24
SIDE = 192
COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 150, 70),
    "blue": (40, 80, 200),
    "yellow": (230, 200, 40),
    "violet": (140, 60, 170),
    "orange": (240, 130, 30),
}
SHAPES = ("circles", "squares", "triangles")
Row = tuple[int, str, str, str]
"""Number, picture's name, question, answer."""


class Drawing(NamedTuple):
    """What is to be seen."""

    n: int
    colour: str
    shape: str
    ground: str


def drawing_of(name: str) -> Drawing:
    rng = random.Random(f"llava picture {name}")
    colour, ground = rng.sample(sorted(COLOURS), 2)
    return Drawing(rng.randrange(2, 9), colour, rng.choice(SHAPES), ground)


def draw(name: str) -> bytes:
    """A PNG file; another one for every name."""
    seen, rng = drawing_of(name), random.Random(f"llava places {name}")
    image = Image.new("RGB", (SIDE, SIDE), COLOURS[seen.ground])
    pen = ImageDraw.Draw(image)
    for _ in range(seen.n):
        size = rng.randrange(18, 40)
        x, y = rng.randrange(SIDE - size), rng.randrange(SIDE - size)
        box = (x, y, x + size, y + size)
        if seen.shape == "circles":
            pen.ellipse(box, fill=COLOURS[seen.colour])
        elif seen.shape == "squares":
            pen.rectangle(box, fill=COLOURS[seen.colour])
        else:
            pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=COLOURS[seen.colour])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def sample_questions() -> list[Row]:
    rows: list[Row] = []
    for i in range(PICTURES):
        name = f"{i + 1:03}.jpg"
        seen, rng = drawing_of(name), random.Random(f"llava questions {name}")
        what = f"{seen.n} {seen.colour} {seen.shape}"
        asked = [
            (f"How many {seen.shape} does this picture show?", f"It shows {seen.n} {seen.shape}."),
            (
                "Say in detail what is to be seen here.",
                f"On a plain ground, which is {seen.ground}, there are {what}. They differ in size and lie where "
                "chance has put them; some may cover others in part. Nothing else is in it: no text, no frame.",
            ),
            (
                "Suppose that this were a flag. What might it stand for?",
                f"The {seen.ground} ground might be a land, and the {what} its towns. That they are of different sizes "
                "might say that some are larger than others, and that all have the same colour, that none is above "
                "the rest.",
            ),
            ("Which colours has it?", f"Two: {seen.colour} and {seen.ground}."),
        ]
        rows += [(len(rows) + k, name, *one) for k, one in enumerate(asked[: rng.randrange(1, 5)])]
    return rows
