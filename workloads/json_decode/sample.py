"""Pages, names, schemas and functions of our own."""

from __future__ import annotations

import random
from typing import Any

SAMPLE_NAMES = (
    *("Alba Thorn", "Bertram Fay", "Cosima Reed", "Dunstan Hale"),
    *("Elvira Moss", "Falk Winter", "Gilda Rook", "Horace Pell"),
)
_CITIES = ("Arlen", "Brovik", "Corvane", "Dunmere", "Estral", "Fosser")


def sample_pages() -> list[str]:
    """About places that don't exist, of some 4,000 characters."""
    rng = random.Random("json sample")
    return [_page(rng, city) for city in _CITIES]


def _page(rng: random.Random, city: str) -> str:
    told = [
        f"{city} is a city of {rng.randint(20, 900)},{rng.randint(100, 999)} people at {rng.randint(10, 70)}."
        f"{rng.randint(10, 99)} degrees north, in the country of {rng.choice(('Norland', 'Estvia', 'Marra'))}."
    ]
    for year in sorted(rng.sample(range(1200, 2020), 40)):
        what = rng.choice(("a bridge", "a market hall", "a school", "a harbour wall", "a theatre", "a water tower"))
        told.append(f"In {year} {what} was {rng.choice(('built', 'rebuilt', 'lost to a fire'))} in {city}.")
    return " ".join(told)


def sample_schemas() -> list[tuple[str, dict[str, Any], Any]]:
    """(name, schema, a value it accepts)"""
    text, whole, flag = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
    book = _object({"title": text, "pages": whole}, "title")
    kinds = _object({"kind": {"enum": ["a", "b", "c"]}, "on": flag}, "kind", "on")
    point = _object({"x": whole, "y": whole}, "x", "y")
    return [
        ("book", book, {"title": "Tides", "pages": 120}),
        ("kinds", kinds, {"kind": "b", "on": True}),
        ("shelf", {"type": "array", "items": book, "minItems": 1, "maxItems": 3}, [{"title": "Salt"}]),
        ("line", {"type": "array", "items": point, "minItems": 2, "maxItems": 2}, [{"x": 1, "y": 2}, {"x": 3, "y": 4}]),
    ]


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def sample_functions() -> list[tuple[str, dict[str, Any], dict[str, list[Any]]]]:
    """(question, tool, allowed arguments)"""
    rng = random.Random("functions sample")
    found: list[tuple[str, dict[str, Any], dict[str, list[Any]]]] = []
    asked = {"area_of_rectangle": "area", "length_of_fence": "length of the fence", "price_of_tiles": "price"}
    number = {"type": "integer", "description": "in metres"}
    parameters = _object({"width": number, "height": number}, "width", "height")
    for name, what in asked.items():
        tool = {"name": name, "description": f"The {what} for a rectangle.", "parameters": parameters}
        for _ in range(2):
            a, b = rng.randint(2, 30), rng.randint(2, 30)
            question = f"A yard is {a} m wide and {b} m high. What is the {what}?"
            found.append((question, tool, {"width": [a], "height": [b]}))
    return found
