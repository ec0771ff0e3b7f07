"""What is refused before a grammar library sees it: too long, too deeply nested, too often repeated.

Libraries recurse over what they are given, natively: a text that is nested too deeply would end the process.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from engine.constraints.base import GrammarError, GrammarLimits
from engine.constraints.grammar import Grammar, Kind

MULTIPLES = 100_000
"""Most that `multipleOf` may come to: a library counts remainders, with a state for each."""

_NAMES = {
    Kind.REGEX: "regex",
    Kind.JSON_SCHEMA: "JSON schema",
    Kind.JSON: "JSON",
    Kind.LARK: "Lark grammar",
    Kind.EBNF: "EBNF grammar",
    Kind.CHOICE: "list of choices",
    Kind.TOOLS: "tools",
}
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[{]|[\]}]', re.DOTALL)
_REGEX_TOKEN = re.compile(
    r"""
      (?P<atom> \\. | \[\^?\]?(?:[^\]\\]|\\.)*\] )   # an escape, a class of characters
    | (?P<open> \((?:\?(?:P?<\w+>|[\w-]*:))? )
    | (?P<close> \) )
    | (?P<count> \{\d*,?\d*\} )
    | (?P<or> \| )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_RULE_TOKEN = re.compile(
    r"""
      (?P<skip> \#[^\n]* | //[^\n]* | \s+ )
    | (?P<regex> /(?:[^/\\\n]|\\.)+/ )
    | (?P<atom> "(?:[^"\\\n]|\\.)*" | <[^>\s]*> | [\w-]+ )
    | (?P<count> \{\s*\d*\s*,?\s*\d*\s*\} | ~\s*\d+(?:\s*\.\.\s*\d+)? )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<or> \| )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_GBNF_TOKEN = re.compile(
    r"""
      (?P<skip> \#[^\n]* | \s+ )
    | (?P<atom> "(?:[^"\\]|\\.)*" | \[(?:[^\]\\]|\\.)*\] | [\w-]+ )
    | (?P<count> \{\s*\d*\s*,?\s*\d*\s*\} )
    | (?P<open> \( )
    | (?P<close> \) )
    | (?P<or> \| )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)


def check(grammar: Grammar, limits: GrammarLimits) -> None:
    """Raises GrammarError for a grammar over the limits on its text. Cost: the length of the text."""
    name = _NAMES[grammar.kind]
    n_bytes = len(grammar.text.encode())
    if n_bytes > limits.max_bytes:
        raise GrammarError(
            f"the {name} has {n_bytes} bytes, more than the limit of {limits.max_bytes} (max_bytes): make it smaller"
        )
    if grammar.kind is Kind.REGEX:
        _check_tokens(grammar.text, _REGEX_TOKEN, f"the {name}", limits)
    elif grammar.kind is Kind.LARK:
        _check_tokens(grammar.text, _RULE_TOKEN, f"the {name}", limits)
    elif grammar.kind is Kind.EBNF:
        _check_tokens(grammar.text, _GBNF_TOKEN, f"the {name}", limits)
    elif grammar.kind in (Kind.JSON_SCHEMA, Kind.TOOLS):
        _check_json_nesting(grammar.text, f"the {name}", limits)
        schema = json.loads(grammar.text)
        for pattern in _patterns(schema):
            _check_tokens(pattern, _REGEX_TOKEN, f"the JSON schema's pattern {pattern:.60}", limits)
        _check_multiples(schema)


def _check_tokens(text: str, token: re.Pattern[str], what: str, limits: GrammarLimits) -> None:
    """Brackets and counted repetitions. A bad syntax is left for the library to complain of."""
    repeats = [1]
    """For each open bracket, and the whole: the most that something in it is repeated."""
    last = 1
    """The most that something in the last item is repeated."""
    for match in token.finditer(text):
        kind = match.lastgroup
        if kind == "skip":
            continue
        if kind == "open":
            repeats.append(1)
            if len(repeats) > limits.max_nesting + 1:
                raise GrammarError(
                    f"{what} has brackets nested more than {limits.max_nesting} deep (max_nesting): make it flatter"
                )
            last = 1
        elif kind == "close":
            last = repeats.pop() if len(repeats) > 1 else 1
        elif kind == "count":
            last *= _times(match.group())
            if last > limits.max_repeat:
                raise GrammarError(
                    f"{what} repeats something {last} times (nested repetitions multiply) where {limits.max_repeat} "
                    f"are allowed (max_repeat): use smaller counts, or * and +"
                )
        elif kind == "regex":
            _check_tokens(match.group()[1:-1], _REGEX_TOKEN, f"{what}'s regex {match.group():.60}", limits)
            last = 1
        elif kind in ("atom", "or") or match.group() not in "*+?":
            last = 1
        repeats[-1] = max(repeats[-1], last)


def _times(count: str) -> int:
    """The upper count of {m,n} or ~m..n, the lower one where there is no upper."""
    return max((int(number[:9]) for number in re.findall(r"[0-9]+", count)), default=1) or 1


def _check_json_nesting(text: str, what: str, limits: GrammarLimits) -> None:
    depth = 0
    for match in _JSON_TOKEN.finditer(text):
        if match.group() in "[{":
            depth += 1
        elif match.group() in "]}":
            depth -= 1
        if depth > limits.max_nesting:
            raise GrammarError(
                f"{what} has objects and arrays nested more than {limits.max_nesting} deep (max_nesting): make it "
                "flatter, or use $ref"
            )


def _patterns(schema: Any) -> Iterator[str]:
    """The regexes in a schema, and whatever looks like one in its data."""
    for keyword, value in _keywords(schema):
        if keyword == "pattern" and isinstance(value, str):
            yield value
        elif keyword == "patternProperties" and isinstance(value, dict):
            yield from value


def _check_multiples(schema: Any) -> None:
    """Schemas may be merged, so the multiples of all are taken together."""
    together = 1
    for keyword, value in _keywords(schema):
        if keyword == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool) and value:
            digits = "".join(map(str, Decimal(str(value)).normalize().as_tuple().digits))
            together = math.lcm(together, int(digits))
            if together > MULTIPLES:
                raise GrammarError(
                    f"the JSON schema's multipleOf values have {together} as their least common multiple (without "
                    f"zeros at the end and decimal points), more than the {MULTIPLES} allowed: check them in the client"
                )


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every object, with its value."""
    if isinstance(schema, list):
        for part in schema:
            yield from _keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key, value
            yield from _keywords(value)
