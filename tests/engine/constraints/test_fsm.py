"""The finite-state machine: what a regex matches, what it forces, what is refused."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraints import GrammarError, any_json, choices, json_schema, regex
from engine.constraints.base import GrammarLimits
from engine.constraints.fsm.automaton import START, Automaton, compile_tree
from engine.constraints.fsm.backend import FsmBackend
from engine.constraints.fsm.characters import ANY, Bytes, Ranges, negated, united, utf8
from engine.constraints.fsm.compressed import Compressed
from engine.constraints.fsm.regex_syntax import parse
from engine.tokenizer import builtin_tokenizer
from tests.engine.constraints.vocabularies import SIGNS, patterns

LIMITS = GrammarLimits()


def machine(pattern: str) -> Automaton:
    return compile_tree(parse(pattern), LIMITS)


def texts() -> st.SearchStrategy[str]:
    return st.text(SIGNS + "c.19ç", max_size=8)


@settings(deadline=None, max_examples=100)
@given(patterns(), st.lists(texts(), min_size=5, max_size=20))
def test_it_accepts_what_pythons_re_does(pattern: str, candidates: list[str]) -> None:
    built = machine(pattern)
    for text in ["", *SIGNS, *candidates]:
        assert built.accepts(text.encode()) == bool(re.fullmatch(pattern, text)), text


ALIKE = st.characters(max_codepoint=0x7E, exclude_characters="\x1c\x1d\x1e\x1f", include_characters=SIGNS + "çü龥")
"""Characters that Python and Rust sort alike: the excluded ones are white space in Python alone."""


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_it_accepts_what_is_made_to_match(data: st.DataObject) -> None:
    pattern = data.draw(patterns())
    text = data.draw(st.from_regex(pattern, fullmatch=True, alphabet=ALIKE))
    assert machine(pattern).accepts(text.encode())


@pytest.mark.parametrize(
    ("pattern", "fits", "fails"),
    [
        (r"^\d{3}-\d{4}$", "555-1234", "555-123"),
        (r"(?P<year>\d{4})(?<month>\d\d)", "202401", "2024"),
        (r"\x41\x{e9}\u00e9\U0001f600", "Aéé😀", "Aéé"),
        (r"[]a]+", "]a", "b"),
        (r"[^]a]", "b", "]"),
        (r"[a-]", "-", "b"),
        (r"[\w-]", "-", "+"),
        (r"[]-a]+", "]-a", "^"),
        (r"\.\*\[\]\ \-\\", r".*[] -" + "\\", "x"),
        (r"a{2}{3}", "aaaaaa", "aaaaa"),
        (r"(a?)*b", "aab", "ba"),
        (r".", "\r", "\n"),
        (r"[^a]", "\n", "a"),
        (r"a||b", "", "ab"),
        (r"\\$", "\\", "\\$"),
        (r"\$", "$", ""),
        (r"\d", "٣", "³"),
        (r"\w+", "café_ß١", "a-b"),
        (r"\s", "\u00a0", "\u200b"),
        (r"}]", "}]", "}"),
    ],
)
def test_syntax(pattern: str, fits: str, fails: str) -> None:
    built = machine(pattern)
    assert built.accepts(fits.encode())
    assert not built.accepts(fails.encode())


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a(?=b)", "position 1, look-around is not supported"),
        ("(?<!a)b", "look-around is not supported"),
        (r"\bab", "look-around"),
        ("a^b", "position 1, `^` inside a pattern is look-around"),
        ("(a$)b", "`\\$` inside a pattern is look-around"),
        (r"(a)\1", "position 3, back-references are not supported"),
        ("(?P=x)", "a reference to a group is not supported"),
        ("(?i)a", "a flag is not supported"),
        ("(?#c)a", "a comment is not supported"),
        ("(?", "this group is not supported"),
        (r"\p{L}", r"\\p\{...\} is not supported"),
        (r"\e", r"\\e means nothing here"),
        (r"\é", "means nothing here"),
        ("a\\", "a backslash ends the pattern"),
        (r"\x4", "followed by 2 hexadecimal digits"),
        (r"\ud800", "is no character"),
        ("(a", "position 0, the group is never closed"),
        ("a)", "closes no group"),
        ("[a", "position 0, the bracket is never closed"),
        ("[]", "the bracket is never closed"),
        ("[z-a]", "ends before it begins"),
        (r"[\w-z]", "can't begin or end a range"),
        ("[a[b]]", "brackets in brackets"),
        ("[a&&b]", "set operations"),
        ("*a", "repeats nothing"),
        ("a|+", "repeats nothing"),
        ("a{,2}", "a repetition is written"),
        ("a{3,2}", "ends before it begins"),
        ("a" + "*" * 100, "repetitions of one another"),
    ],
)
def test_what_is_not_served_is_refused_by_name(pattern: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message.replace("^", r"\^").replace("(", r"\(")):
        parse(pattern)


def test_an_empty_language_is_refused() -> None:
    with pytest.raises(GrammarError, match="matches nothing"):
        machine(r"a[^\s\S]")
    assert machine(r"a[^\s\S]|b").accepts(b"b")


@pytest.mark.parametrize(
    ("pattern", "n_states"),
    [
        ("abc", 4),
        ("(a|b)*abb", 4),
        ("(a|b)*a(a|b){3}", 16),
        ("a{100}", 101),
        ("(aa|bb|ab|ba)*", 2),
        (".", 9),
        ("a*|a+", 1),
    ],
)
def test_the_automaton_is_the_smallest_there_is(pattern: str, n_states: int) -> None:
    assert machine(pattern).n_states == n_states


@pytest.mark.parametrize(
    ("some", "other"),
    [("(a|b)*", "(a*b*)*"), ("a+", "aa*"), ("(ab)?(ab)?", "(ab){0,2}"), ("[a-c]", "a|b|c"), (r"\d|\D", r"[\s\S]")],
)
def test_equal_languages_have_equal_automata(some: str, other: str) -> None:
    one, two = machine(some), machine(other)
    assert (one.table[:, one.byte_class] == two.table[:, two.byte_class]).all()
    assert (one.accepting == two.accepting).all()


def test_every_character_of_a_set_is_written_as_utf8_does() -> None:
    some: Ranges = (
        (0x41, 0x5A),
        (0x7F, 0x81),
        (0x7FE, 0x802),
        (0xD000, 0xDFFF),
        (0xFFFE, 0x10003),
        (0x10FFF0, 0x10FFFF),
    )
    ranges = united([some])

    def spelled(branches: Bytes) -> list[bytes]:
        return [
            bytes([byte]) + rest
            for first, last, below in branches
            for byte in range(first, last + 1)
            for rest in (spelled(below) if below else [b""])
        ]

    expected = [chr(c).encode() for first, last in ranges for c in range(first, last + 1)]
    assert spelled(utf8(ranges)) == expected
    assert united([ranges, negated(ranges)]) == ANY


# ---- compressed edges


@settings(deadline=None, max_examples=40)
@given(patterns())
def test_forced_bytes_are_those_without_a_choice(pattern: str) -> None:
    built = machine(pattern)
    compressed = Compressed(built)
    for state in range(START, built.n_states + 1):
        text, to = compressed.forced(state)
        assert built.walk(state, text) == to
        assert built.accepting[to] or len(built.next_bytes(to)) > 1
        at = state
        for byte in text:
            assert not built.accepting[at]
            assert built.next_bytes(at) == bytes([byte])
            at = built.step(at, byte)


@settings(deadline=None, max_examples=40)
@given(patterns())
def test_the_compressed_graph_is_the_automaton(pattern: str) -> None:
    built = machine(pattern)
    compressed = Compressed(built)
    for state in compressed.states():
        covered = b""
        for edge in compressed.edges(state):
            for byte in range(edge.first, edge.last + 1):
                assert built.walk(state, bytes([byte]) + edge.forced) == edge.to
                covered += bytes([byte])
        assert covered == built.next_bytes(state)


def test_the_papers_example_is_one_edge_between_choices() -> None:
    """Figure 4: `{"summary": "` costs one jump, not one step a token."""
    built = machine(r'\{"summary": "[\w\d\s]+\."\}')
    compressed = Compressed(built)
    (edge,) = compressed.edges(START)
    assert bytes([edge.first]) + edge.forced == b'{"summary": "'
    dot = next(edge for edge in compressed.edges(built.walk(START, b'{"summary": "a')) if edge.first == ord("."))
    assert dot.forced == b'"}'


# ---- the backend


def backend(limits: GrammarLimits = LIMITS) -> FsmBackend:
    tokenizer = builtin_tokenizer()
    return FsmBackend(tokenizer, vocab_size=520, eos=tokenizer.eos_token_ids, limits=limits)


def test_other_kinds_are_refused_by_name() -> None:
    for grammar in (any_json(), json_schema({})):
        with pytest.raises(GrammarError, match=f"serves regex and choice, not {grammar.kind.value}"):
            backend().compile(grammar)


def test_a_choice_ends_with_its_last_byte() -> None:
    tokenizer = builtin_tokenizer()
    matcher = backend().compile(choices(["yes", "no (why?)"])).matcher()
    matcher.accept(tokenizer.encode("no", add_special_tokens=False))
    assert not matcher.complete
    forced = matcher.forced()
    assert forced == tokenizer.encode(" (why?)", add_special_tokens=False)
    matcher.accept(forced)
    assert matcher.complete
    assert matcher.forced() == []
    mask = np.zeros(17, np.int32)
    matcher.fill(mask)
    assert np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist() == [2]
    matcher.accept([2])
    assert matcher.complete
    with pytest.raises(GrammarError, match="token 2 is not allowed"):
        matcher.accept([2])


def test_a_token_that_is_not_allowed_is_refused() -> None:
    matcher = backend().compile(regex("ab")).matcher()
    for token in (builtin_tokenizer().encode("b", add_special_tokens=False)[0], 2, 0, 515, -1):
        with pytest.raises(GrammarError, match=f"token {token} is not allowed"):
            matcher.accept([token])


@pytest.mark.parametrize(
    ("pattern", "limits", "message"),
    [
        ("(a|b)*a(a|b){12}", GrammarLimits(max_states=1000), "max_states=1000"),
        (r"(\w{1,50},){1,50}", GrammarLimits(compile_fuel=50_000), "compile_fuel=50000"),
        ("(a?){0,9000}", GrammarLimits(compile_fuel=50_000), "compile_fuel=50000"),
        ("(a{200}){200}", GrammarLimits(), "max_repeat"),
        ("(" * 70 + "a" + ")" * 70, GrammarLimits(), "max_nesting"),
        ("a" * 70_000, GrammarLimits(), "max_bytes"),
    ],
)
def test_limits(pattern: str, limits: GrammarLimits, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        backend(limits).compile(regex(pattern))
