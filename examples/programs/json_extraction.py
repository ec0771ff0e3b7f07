"""JSON out of a page, in two ways side by side: field by field, each held by a regex, and whole, held by a schema.

In the first the program writes the braces and names, the model only the values; in the second a grammar forces what
leaves no choice. Both branches go on from the same page. A Python function then reads both.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel

import lang
from examples.programs.example import Example

NAME = r'"[A-Z][a-z]{1,10}"'
NUMBER = r"[1-9][0-9]{2,6}"
NAMES = rf"\[{NAME}(, {NAME}){{0,2}}\]"


class City(BaseModel):
    continent: Literal["Africa", "America", "Asia", "Europe"]
    by_the_sea: bool
    river: Literal["Seine", "Thames", "Tiber", "none"]


@lang.pure
def record(fields: str, whole: str) -> dict[str, Any]:
    """Of both texts. Raises ValueError when one isn't JSON."""
    return {**json.loads(fields), **json.loads(whole)}


@lang.function
def json_extraction(s: lang.ProgramState, page: str) -> dict[str, Any]:
    s += f"{page}\n\nThe city above as JSON:\n"
    fields, whole = forks = s.fork(2)
    with fields.var_scope("fields"):
        fields += '{"name": ' + lang.gen("name", max_tokens=20, regex=NAME)
        fields += ', "country": ' + lang.gen("country", max_tokens=20, regex=NAME)
        fields += ', "population": ' + lang.gen("population", max_tokens=10, regex=NUMBER)
        fields += ', "landmarks": ' + lang.gen("landmarks", max_tokens=60, regex=NAMES) + "}"
    whole += lang.gen("whole", max_tokens=120, json_schema=City)
    forks.join()
    return lang.apply(record, s["fields"][0], s["whole"][0])


PAGES = [
    "Paris is the capital of France. Two million people live in it. The Louvre stands on the bank of the Seine.",
    "London lies on the Thames. Nine million people live in the capital of England; its tower is old.",
    "Rome was built on seven hills by the Tiber. The capital of Italy has three million people and the Pantheon.",
    "Lima is the capital of Peru and lies by the Pacific. Ten million people live there.",
    "Nairobi is the capital of Kenya. Four million people live in it, high above the sea.",
    "Kyoto was the capital of Japan for a thousand years. One and a half million people live among its temples.",
]
EXAMPLE = Example(json_extraction, items=[{"page": page} for page in PAGES], functions=[record])


def main() -> None:
    EXAMPLE.show()


if __name__ == "__main__":
    main()
