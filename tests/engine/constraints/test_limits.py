"""A grammar over a limit fails at once, alone, with a message that names the limit."""

from __future__ import annotations

import pytest

from engine.constraints import GrammarError, ebnf, json_schema, lark, regex, tools
from engine.constraints.base import GrammarLimits
from engine.constraints.limits import CHAIN, check

DEFAULT = GrammarLimits()


def nested_schema(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def ref_chain(n):
    links = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n}": {"type": "integer"}}}


@pytest.mark.parametrize(
    "grammar",
    [
        regex(r"(a(b|[c(]){2}){3}\(\(\((?i:x)"),
        regex("(" * 64 + "a" + ")" * 64),
        regex("(a{100}){100}(b{100}){100}"),
        regex(r"a{9999}|[{2,3}]{5000}|\{9{1,100}"),
        json_schema(nested_schema(31)),
        json_schema({"type": "string", "pattern": "^[^(]{1,400}$", "description": "((" * 500}),
        json_schema({"items": {"multipleOf": 0.25}, "properties": {"x": {"multipleOf": 1000}}}),
        json_schema(ref_chain(200)),
        lark('start: (a | "((((" /[(]/ b{2,3})~5..6\na: /x{10}/ // ((((\nb: %json {"enum": ["{{{{"]}'),
        ebnf('root ::= ("a" | [(] item{2,3})* # ((((\nitem ::= "((" '),
    ],
)
def test_what_is_within_the_limits_passes(grammar):
    check(grammar, DEFAULT)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (regex("a" * 70_000), "70000 bytes, more than the limit of 65536 \\(max_bytes\\)"),
        (json_schema({"enum": ["é" * 40_000]}), "JSON schema has 8.* bytes.*max_bytes"),
        (regex("(" * 65 + "a" + ")" * 65), "nested more than 64 deep \\(max_nesting\\)"),
        (regex("((a|b|cd|e.f){5000}x){3}"), "repeats something 15000 times .*10000 are allowed \\(max_repeat\\)"),
        (regex("(((a|bc){100}d){100}e){100}"), "max_repeat"),
        (regex("(.{0,100}){101,}"), "max_repeat"),
        (json_schema(nested_schema(33)), "nested more than 64 deep \\(max_nesting\\)"),
        (json_schema({"properties": {"default": {"pattern": "(x{500}){500}"}}}), "pattern .*max_repeat"),
        (json_schema({"patternProperties": {"(x{500}){500}": {}}}), "max_repeat"),
        (json_schema({"type": "integer", "multipleOf": 99_999_989}), "multipleOf"),
        (lark('start: "x" %json {"type": "integer", "multipleOf": 99999989}'), "multipleOf"),
        (json_schema({"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}), "multipleOf"),
        (json_schema({"patternProperties": {f"^a{i}$": {} for i in range(200)}}), "200 patternProperties"),
        (json_schema({"allOf": [{"pattern": f".*{i}.*"} for i in range(20)]}), "allOf and 20 different patterns"),
        (json_schema(ref_chain(CHAIN)), "too many definitions"),
        (lark("start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(4000))), "too many rules"),
        (lark("start: A\nA: " + " & ".join(f"/(.*a.*){{{i}}}b/" for i in range(1, 20))), "operators & and ~"),
        (lark('start: ("a"{200} "b")~300'), "max_repeat"),
        (lark("start: A\nA: /(x{200}y){200}/"), "regex .*max_repeat"),
        (lark("start: " + "(" * 70 + '"a"' + ")" * 70), "max_nesting"),
        (ebnf("root ::= a0\n" + "\n".join(f"a{i} ::= a{i + 1}" for i in range(4000))), "too many rules"),
        (ebnf("root ::= " + "(" * 70 + '"a"' + ")" * 70), "max_nesting"),
        (tools({"f": {"pattern": "(x{500}){500}"}}, begin="<t>", end=""), "tool f's pattern .*max_repeat"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_over_a_limit_the_message_names_it(grammar, says):
    with pytest.raises(GrammarError, match=says):
        check(grammar, DEFAULT)


def test_limits_are_the_engines_to_set():
    grammar = regex("(a{30}){30}")
    check(grammar, DEFAULT)
    with pytest.raises(GrammarError, match=r"900 times .*100 are allowed"):
        check(grammar, GrammarLimits(max_repeat=100))


@pytest.mark.parametrize(
    "grammar",
    [
        regex("[" + "(" * 100),
        lark('start: "' + "(" * 100),
        lark("start: <" + "(" * 100),
        ebnf('root ::= "' + "(" * 100),
    ],
)
def test_what_is_never_closed_goes_to_the_end(grammar):
    """And isn't tried again from each of its signs, which would take the square of its length."""
    check(grammar, DEFAULT)
