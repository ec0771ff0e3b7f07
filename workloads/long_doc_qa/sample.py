"""Reports of our own about harbours that don't exist, long enough to be cut into parts. The same every time."""

from __future__ import annotations

import random

HARBOURS = ("Port Alder", "Saint Bree", "Cape Corran", "Dunhaven", "Eastmouth", "Ferrow")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
SHIPS = ("Blue Heron", "Morning Star", "Old Martha", "Silver Eel", "North Wind", "Little Fox", "Grey Lady", "Hope")
GOODS = ("barrels of salt", "sacks of barley", "crates of tiles", "rolls of canvas", "casks of oil", "tons of slate")
WEATHER = (
    "in thick fog",
    "under a clear sky",
    "before the first storm",
    "in light rain",
    "at low water",
    "by moonlight",
)
WORKS = ("the eastern pier", "the old crane", "the customs house", "the lamp of the lighthouse", "the fish market")
PEOPLE = ("the harbour master", "a carpenter from the hills", "two young pilots", "the keeper's widow", "the council")
VERBS = ("repaired", "painted", "measured", "paid for", "complained about", "closed", "praised")

Row = tuple[str, str]
"""Title and text."""


def _report(rng: random.Random, harbour: str, years: int) -> Row:
    lines = []
    for year in range(1840, 1840 + years):
        told = [f"The year {year} at {harbour} brought {rng.randint(40, 900)} ships."]
        for month in MONTHS:
            told.append(
                f"On {month} {rng.randint(1, 28)} the {rng.choice(SHIPS)} came in {rng.choice(WEATHER)} with "
                f"{rng.randint(20, 600)} {rng.choice(GOODS)}."
            )
            told.append(
                f"In the same month {rng.choice(PEOPLE)} {rng.choice(VERBS)} {rng.choice(WORKS)} for "
                f"{rng.randint(3, 90)} crowns and {rng.randint(1, 19)} shillings."
            )
        lines.append(" ".join(told))
    return f"The harbour of {harbour}", "\n".join(lines)


def sample_documents() -> list[Row]:
    """Six of about 60,000 characters."""
    rng = random.Random("long documents sample")
    return [_report(rng, harbour, 36) for harbour in HARBOURS]


def warmup_document() -> Row:
    """A short one, of another harbour."""
    return _report(random.Random("long documents warm-up"), "Warm Bay", 1)
