"""xgrammar behind the same interface: it allows what llguidance allows, and refuses what it wouldn't keep to."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest

from engine.config import ConfigError
from engine.constraints import Grammar, GrammarError, any_json, choices, ebnf, json_schema, lark, regex, tools
from engine.constraints.backends import make_backend
from engine.constraints.base import GrammarLimits, Mask, Matcher
from engine.tokenizer import builtin_tokenizer

pytest.importorskip("xgrammar")

TOKENIZER = builtin_tokenizer()
VOCAB = 520
GRAMMARS: dict[str, Grammar] = {
    "date": regex(r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"),
    "classes": regex(r"[^\W\d]+\s\S*.?[é-ü]"),
    "counts": regex(r"^(ab?){2,3}(|c{0}d*)$"),
    "choice": choices(["yes", 'no "way"', "nö\n", "[]-^\\"]),
    "arithmetic": ebnf('root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"'),
    "object": json_schema(
        {
            "type": "object",
            "properties": {
                "name": {"enum": ["Ann", "Bob"]},
                "age": {"type": "integer", "minimum": 0, "maximum": 130},
                "ok": {"type": "boolean"},
            },
            "required": ["name", "age", "ok"],
            "additionalProperties": False,
        }
    ),
    "list": json_schema({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3}),
    "either": json_schema({"anyOf": [{"const": "a b"}, {"type": "null"}, {"const": 17}]}),
    "reference": json_schema(
        {"$defs": {"flag": {"type": "boolean"}}, "type": "array", "items": {"$ref": "#/$defs/flag"}}
    ),
}


def start(name: str, grammar: Grammar) -> Matcher:
    return make_backend(name, TOKENIZER, vocab_size=VOCAB, eos=[2]).compile(grammar).matcher()


def allowed(matcher: Matcher) -> list[int]:
    mask: Mask = np.full(-(-VOCAB // 32), -1, np.int32)
    matcher.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


@pytest.mark.parametrize("name", GRAMMARS)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_tokens_are_allowed_as_by_llguidance(name: str, seed: int) -> None:
    ours, theirs = start("xgrammar", GRAMMARS[name]), start("llguidance", GRAMMARS[name])
    rng = random.Random(seed)
    for _ in range(30):
        mine, others = allowed(ours), allowed(theirs)
        if forced := theirs.forced():  # then llguidance allows nothing else
            assert others == forced[:1]
            assert set(others) <= set(mine)
        else:
            assert mine == others
        assert ours.complete == (mine == [2])
        if not (going_on := [token for token in mine if token != 2]):
            break
        token = rng.choice(going_on)
        ours.accept([token])
        theirs.accept([token])


@pytest.mark.parametrize("name", GRAMMARS)
def test_forced_tokens_are_those_of_the_masks_bytes(name: str) -> None:
    """Wherever something is forced, each forced token is allowed, and the machine stands where the bytes lead."""
    rng = random.Random(7)
    matcher, n_forced = start("xgrammar", GRAMMARS[name]), 0
    for _ in range(40):
        while forced := matcher.forced():
            assert 2 not in forced
            for token in forced:
                assert token in allowed(matcher)
                matcher.accept([token])
            n_forced += len(forced)
        going_on = [token for token in allowed(matcher) if token != 2]
        if not going_on:
            assert matcher.complete
            break
        matcher.accept([rng.choice(going_on)])
    if name in ("object", "date"):
        assert n_forced > 0


def test_forced_bytes_may_end_inside_a_character() -> None:
    matcher = start("xgrammar", choices(["aé", "aè"]))
    assert matcher.forced_bytes() == b"a\xc3"  # type: ignore[attr-defined]
    assert matcher.forced() == TOKENIZER.encode("a", add_special_tokens=False)


def test_an_end_is_accepted_where_the_grammar_has_one() -> None:
    matcher = start("xgrammar", regex("ab?"))
    with pytest.raises(GrammarError, match=r"ended .* where the grammar wants more"):
        matcher.accept([2])
    matcher.accept(TOKENIZER.encode("a", add_special_tokens=False))
    assert not matcher.complete
    assert 2 in allowed(matcher)
    matcher.accept([2])
    assert matcher.complete
    assert allowed(matcher) == [2]
    with pytest.raises(GrammarError, match="after the end"):
        matcher.accept([5])


@pytest.mark.parametrize("vocab_size", [512, 519, 543, 544])
def test_masks_fit_any_vocabulary(vocab_size: int) -> None:
    matcher = make_backend("xgrammar", TOKENIZER, vocab_size=vocab_size, eos=[2]).compile(regex("(.|\n)*")).matcher()
    mask: Mask = np.zeros(-(-vocab_size // 32), np.int32)
    matcher.fill(mask)
    found = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
    assert found[0] == 2
    assert found[-1] <= 511


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        (lark('start: "a"'), "doesn't serve lark"),
        (tools({"f": {}}, begin="<call>", end="</call>"), "doesn't serve tools"),
        (regex("(a"), "never closed"),
        (regex("a(?=b)"), "look-around"),
        (regex(r"a[^\s\S]"), "matches nothing"),
        (ebnf('root ::= "a" b'), 'Rule "b" is not defined'),
        (json_schema({"type": "nothing"}), 'Unsupported type "nothing"'),
        (json_schema({"type": "string", "pattern": "a(?=b)"}), "look-around"),
    ],
)
def test_what_is_wrong_is_said(grammar: Grammar, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        start("xgrammar", grammar)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"not": {}}, "'not'"),
        ({"type": "integer", "multipleOf": 3}, "'multipleOf'"),
        ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "'oneOf'"),
        ({"allOf": [{"minimum": 2}, {"maximum": 3}]}, "'allOf' of several"),
        ({"$ref": "#/$defs/a", "minLength": 3, "$defs": {"a": {}}}, "'\\$ref' beside minLength"),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "'anyOf' beside type"),
        ({"type": "string", "pattern": "a+", "maxLength": 3}, "maxLength together with pattern"),
        ({"type": "string", "format": "iban"}, "the format 'iban'"),
        ({"type": "string", "format": "date"}, "the format 'date'"),
        ({"$ref": "#elsewhere"}, "the \\$ref '#elsewhere'"),
        ({"patternProperties": {"a+": {"type": "null"}}}, "'patternProperties'"),
        ({"pattern": "a+"}, "'pattern' without a 'type'"),
        ({"type": "object", "enum": ["a"]}, "'enum' that isn't of its 'type'"),
        ({"type": "object", "properties": {"a": {}}, "required": ["a", "b"]}, "'required' of b"),
        ({"properties": {"a": {"items": [{"if": {}}]}}}, "'if'"),
    ],
)
def test_what_xgrammar_would_pass_over_is_refused_by_name(schema: dict[str, Any], named: str) -> None:
    with pytest.raises(GrammarError, match=f"doesn't serve .*{named}"):
        start("xgrammar", json_schema(schema))


@pytest.mark.parametrize(
    "schema", [{"required": True}, {"properties": [1]}, {"anyOf": 3}, {"format": 1, "type": "string"}]
)
def test_what_is_no_schema_is_refused(schema: dict[str, Any]) -> None:
    with pytest.raises(GrammarError):
        start("xgrammar", json_schema(schema))


def test_properties_named_like_keywords_are_only_names() -> None:
    start("xgrammar", json_schema({"type": "object", "properties": {"not": {"type": "null"}}, "required": ["not"]}))


def test_limits_on_the_text_are_kept() -> None:
    limits = GrammarLimits(max_repeat=100, max_nesting=8)
    backend = make_backend("xgrammar", TOKENIZER, vocab_size=VOCAB, eos=[2], limits=limits)
    for grammar, limit in ((regex("(a{20}){20}"), "max_repeat"), (regex("(" * 9 + "a" + ")" * 9), "max_nesting")):
        with pytest.raises(GrammarError, match=limit):
            backend.compile(grammar)


def test_any_json_is_an_object() -> None:
    assert {TOKENIZER.token_bytes(i) for i in allowed(start("xgrammar", any_json()))} == {b"{"}


def test_without_the_library_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    monkeypatch.delitem(sys.modules, "engine.constraints.xgr", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'radixlab\[xgrammar\]'"):
        make_backend("xgrammar", TOKENIZER, vocab_size=VOCAB, eos=[2])


def test_a_backend_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown grammar backend 'xgramar'; did you mean 'xgrammar'"):
        make_backend("xgramar", TOKENIZER, vocab_size=VOCAB, eos=[2])
