"""The regexes of the paper's JSON benchmarks (SGLang's benchmark/json_decode_regex and json_jump_forward)."""

from __future__ import annotations

from typing import NamedTuple

_WORDS = r"[\w\d\s]{1,16}"
CHARACTER = (
    r"\{\n"
    rf'    "name": "{_WORDS}",\n'
    r'    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n'
    r'    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n'
    r'    "occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)",\n'
    r'    "wand": \{\n'
    rf'        "wood": "{_WORDS}",\n'
    rf'        "core": "{_WORDS}",\n'
    r'        "length": [0-9]{1,2}\.[0-9]{0,2}\n'
    r"    \},\n"
    r'    "alive": "(Alive|Deceased)",\n'
    rf'    "patronus": "{_WORDS}",\n'
    rf'    "bogart": "{_WORDS}"\n'
    r"\}"
)
"""A record of a Harry Potter character."""
CITY = (
    r"\{\n"
    rf'  "name": "{_WORDS}",\n'
    rf'  "country": "{_WORDS}",\n'
    r'  "latitude": [-+]?[0-9]*\.?[0-9]{0,2},\n'
    r'  "population": [-+]?[0-9]{1,9},\n'
    rf'  "top 3 landmarks": \["{_WORDS}", "{_WORDS}", "{_WORDS}"\]\n'
    r"\}"
)
"""A record of a city, from its Wikipedia page."""
MAX_TOKENS = 256
"""Of a record."""


class Field(NamedTuple):
    """One call of the launch version."""

    name: str
    pattern: str
    max_tokens: int


_STRING = r"\"[\w\d\s]*\""
FIELDS = (
    Field("name", rf"{_STRING},", 8),
    Field("country", rf"{_STRING},", 8),
    Field("latitude", r"[-+]?[0-9]*\.?[0-9]+,", 8),
    Field("population", r"[-+]?[0-9]+,", 8),
    Field("landmarks", rf"\[({_STRING},)*{_STRING}\]", 24),
)
