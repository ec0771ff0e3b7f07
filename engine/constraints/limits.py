"""What is refused before a grammar library sees it: too long, too deeply nested, too often repeated.

Libraries recurse over what they are given, natively: a grammar that leads them too deep would end the process. And some
of their work has no limit of its own, or one that is reached after minutes. The constants here are where llguidance
still takes well under a second, with an eighth of a thread's usual stack (8 MiB).
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
"""Most that `multipleOf` may come to: a remainder takes a state."""
PATTERN_PROPERTIES = 100
"""Patterns of property names: each pair is checked for overlap."""
MERGED_PATTERNS = 10
"""Different patterns in a schema whose parts are merged: a text that matches all of them is looked for."""
OPERATORS = 8
"""`&` and `~` of a Lark grammar."""
CHAIN = 1000
"""Levels of recursion, if each rule, or each definition of a schema, leads to the next."""

_NAMES = {
    Kind.REGEX: "regex",
    Kind.JSON_SCHEMA: "JSON schema",
    Kind.JSON: "JSON",
    Kind.LARK: "Lark grammar",
    Kind.EBNF: "EBNF grammar",
    Kind.CHOICE: "list of choices",
    Kind.TOOLS: "tools",
}
# In these an end that is missing is forgiven (`"?`), so that no text takes more than one pass.
_JSON_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)
_REGEX_TOKEN = re.compile(
    r"""
      (?P<atom> \\. | \[\^?\]?(?:[^\]\\]|\\.)*\]? )   # an escape, a class of characters
    | (?P<open> \((?:\?(?:P?<\w+>|[\w-]*:))? )
    | (?P<close> \) )
    | (?P<count> \{\d*,?\d*\} )
    | (?P<or> \| )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_JSON_BLOCK = re.compile(r"%json\s*")
_LARK_TOKEN = re.compile(
    r"""
      (?P<skip> \#[^\n]* | //[^\n]* | \s+ )
    | (?P<regex> /(?:[^/\\\n]|\\.)+/? )
    | (?P<atom> "(?:[^"\\\n]|\\.)*"? | <[^<>\s]*>? | [\w-]+ )
    | (?P<count> \{\s*\d*\s*,?\s*\d*\s*\} | ~\s*\d+(?:\s*\.\.\s*\d+)? )
    | (?P<open> [(\[{] )
    | (?P<close> [)\]}] )
    | (?P<or> \| )
    | (?P<rule> : )
    | (?P<operator> [&~] )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_GBNF_TOKEN = re.compile(
    r"""
      (?P<skip> \#[^\n]* | \s+ )
    | (?P<atom> "(?:[^"\\]|\\.)*"? | \[(?:[^\]\\]|\\.)*\]? | [\w-]+ )
    | (?P<count> \{\s*\d*\s*,?\s*\d*\s*\} )
    | (?P<open> \( )
    | (?P<close> \) )
    | (?P<or> \| )
    | (?P<rule> ::= )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)


def check(grammar: Grammar, limits: GrammarLimits) -> None:
    """Raises GrammarError for a grammar over the limits on its text. Cost: the length of the text."""
    what = f"the {_NAMES[grammar.kind]}"
    n_bytes = len(grammar.text.encode())
    if n_bytes > limits.max_bytes:
        raise GrammarError(
            f"{what} has {n_bytes} bytes, more than the limit of {limits.max_bytes} (max_bytes): make it smaller"
        )
    if grammar.kind is Kind.REGEX:
        _check_tokens(grammar.text, _REGEX_TOKEN, what, limits)
    elif grammar.kind is Kind.LARK:
        _check_tokens(grammar.text, _LARK_TOKEN, what, limits)
        for schema in schemas_in(grammar.text):
            _check_schema(schema, "a %json schema in the Lark grammar", limits)
    elif grammar.kind is Kind.EBNF:
        _check_tokens(grammar.text, _GBNF_TOKEN, what, limits)
    elif grammar.kind is not Kind.JSON:
        _json_depth(grammar.text, what, limits.max_nesting)
        data = _parsed(grammar.text, what)
        if grammar.kind is Kind.JSON_SCHEMA:
            _check_schema(data, what, limits)
        elif grammar.kind is Kind.TOOLS:
            for name, schema in data["tools"].items():
                _check_schema(schema, f"the schema of the tool {name:.60}", limits)


def _check_tokens(text: str, token: re.Pattern[str], what: str, limits: GrammarLimits) -> None:
    """Brackets, counted repetitions, rules. A bad syntax is left for the library to complain of."""
    repeats = [1]
    """For each open bracket, and the whole: the most that something in it is repeated."""
    last = 1
    """The most that something in the last item is repeated."""
    deepest = chain = operators = 0
    for match in token.finditer(text):
        kind = match.lastgroup
        if kind == "skip":
            continue
        if kind == "open":
            repeats.append(1)
            deepest = max(deepest, len(repeats) - 1)
            last = 1
        elif kind == "close":
            last = repeats.pop() if len(repeats) > 1 else 1
        elif kind == "count":
            last *= _times(match.group())
        elif kind == "rule" and len(repeats) == 1:
            chain, deepest, last = chain + 1 + deepest, 0, 1
        elif kind == "regex":
            _check_tokens(match.group()[1:-1], _REGEX_TOKEN, f"{what}'s regex {match.group():.60}", limits)
            last = 1
        elif kind != "other" or match.group() not in "*+?":  # those repeat the last item, but aren't counted
            last = 1
        operators += kind == "operator"
        repeats[-1] = max(repeats[-1], last)
        if deepest > limits.max_nesting:
            raise GrammarError(
                f"{what} has brackets nested more than {limits.max_nesting} deep (max_nesting): make it flatter"
            )
        if last > limits.max_repeat:
            raise GrammarError(
                f"{what} repeats something {last} times (nested repetitions multiply) where {limits.max_repeat} "
                f"are allowed (max_repeat): use smaller counts, or * and +"
            )
    if chain + deepest > CHAIN:
        raise GrammarError(
            f"{what} has too many rules: rules and their nested brackets come to {chain + deepest} where {CHAIN} are "
            "allowed: use fewer"
        )
    if operators > OPERATORS:
        raise GrammarError(f"{what} has {operators} operators & and ~ where {OPERATORS} are allowed: use fewer")


def schemas_in(lark: str) -> Iterator[Any]:
    """The schemas that stand in a Lark grammar behind `%json`; one that isn't JSON is the library's to complain of."""
    for match in _JSON_BLOCK.finditer(lark):
        try:
            yield json.JSONDecoder().raw_decode(lark, match.end())[0]
        except (ValueError, RecursionError):
            continue


def _times(count: str) -> int:
    """The upper count of {m,n} or ~m..n, the lower one where there is no upper."""
    return max((int(number[:9]) for number in re.findall(r"[0-9]+", count)), default=1) or 1


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # a number of thousands of digits, say
        raise GrammarError(f"{what} isn't JSON that can be read: {error}") from None


def _json_depth(text: str, what: str, allowed: int) -> int:
    """Levels of objects and arrays. Raises GrammarError when there are more than `allowed`."""
    depth = deepest = 0
    for match in _JSON_TOKEN.finditer(text):
        if match.group() in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match.group() in "]}":
            depth -= 1
        if depth > allowed:
            raise GrammarError(
                f"{what} has objects and arrays nested more than {allowed} deep (max_nesting): make it flatter, or "
                "use $ref"
            )
    return deepest


def _check_schema(schema: Any, what: str, limits: GrammarLimits) -> None:
    """Keywords are counted wherever they stand, in examples too: a count too high at worst."""
    patterns: set[str] = set()
    n_pattern_properties = 0
    targets: set[str] = set()
    merged = False
    multiple = 1
    for keyword, value in _keywords(schema):
        if keyword == "pattern" and isinstance(value, str):
            patterns.add(value)
        elif keyword == "patternProperties" and isinstance(value, dict):
            patterns.update(value)
            n_pattern_properties += len(value)
        elif keyword == "$ref" and isinstance(value, str):
            targets.add(value)
        elif keyword == "allOf":
            merged = True
        elif keyword == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool):
            digits = Decimal(str(value)).normalize().as_tuple().digits
            multiple = math.lcm(multiple, int("".join(map(str, digits))) or 1)
            if multiple > MULTIPLES:
                raise GrammarError(
                    f"{what} has multipleOf values whose least common multiple, without decimal points and zeros at "
                    f"the end, is {multiple:.6g}, more than the {MULTIPLES} allowed: leave them out"
                )
    for pattern in patterns:
        _check_tokens(pattern, _REGEX_TOKEN, f"{what}'s pattern {pattern:.60}", limits)
    if n_pattern_properties > PATTERN_PROPERTIES:
        raise GrammarError(
            f"{what} has {n_pattern_properties} patternProperties where {PATTERN_PROPERTIES} are allowed: use fewer"
        )
    if merged and len(patterns) > MERGED_PATTERNS:
        raise GrammarError(
            f"{what} has allOf and {len(patterns)} different patterns where {MERGED_PATTERNS} are allowed: use fewer, "
            "or no allOf"
        )
    places = {id(place): place for place in (_target(schema, target) for target in targets)}
    levels = {at: 1 + _json_depth(json.dumps(place), what, limits.max_nesting) for at, place in places.items()}
    chain = sum(levels[id(_target(schema, target))] for target in targets)
    if chain > CHAIN:
        raise GrammarError(
            f"{what} has too many definitions: the levels of those that $ref names come to {chain} where {CHAIN} are "
            "allowed: use fewer"
        )


def _target(schema: Any, reference: str) -> Any:
    """What a `$ref` names; the whole schema where that isn't plain."""
    found = schema
    for part in reference.removeprefix("#").split("/")[1:]:
        if not isinstance(found, dict) or part not in found:
            return schema
        found = found[part]
    return found


def _keywords(schema: Any) -> Iterator[tuple[str, Any]]:
    """Every key of every object, with its value."""
    if isinstance(schema, list):
        for part in schema:
            yield from _keywords(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            yield key, value
            yield from _keywords(value)
