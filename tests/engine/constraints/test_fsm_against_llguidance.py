"""Our machine and llguidance say the same of every step: allowed tokens, forced bytes, the end."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, event, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from engine.constraints import Grammar, choices, regex
from engine.constraints.base import GrammarLimits, Mask
from engine.constraints.fsm.automaton import START
from engine.constraints.fsm.backend import FsmBackend
from engine.constraints.llg import LLGuidance
from engine.tokenizer import Tokenizer, builtin_tokenizer
from tests.engine.constraints.vocabularies import SIGNS, ListTokenizer, patterns, vocabularies

LIMITS = GrammarLimits()
QUICK = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
BUILTIN = builtin_tokenizer()


def words(vocab_size: int) -> Mask:
    return np.full(-(-vocab_size // 32), -1, np.int32)


def tokens_of(mask: Mask) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def each_allowed(matcher: LLMatcher, tokens: Sequence[int]) -> list[int]:
    """What llguidance allows, asked token by token: its masks hold a forced token alone, whatever else would match."""
    return [token for token in tokens if matcher.validate_tokens([token]) == 1]


def walk_both(grammar: Grammar, tokenizer: Tokenizer, vocab_size: int, rng: random.Random, steps: int = 12) -> bool:
    """Follows one random output through both machines. Whether it reached an end."""
    setting = {"vocab_size": vocab_size, "eos": tokenizer.eos_token_ids, "limits": LIMITS}
    ours = FsmBackend(tokenizer, **setting).compile(grammar).matcher()
    theirs = LLGuidance(tokenizer, **setting).compile(grammar).matcher()
    with_text = [i for i in range(vocab_size) if tokenizer.token_bytes(i)]
    mine, other = words(vocab_size), words(vocab_size)
    output = b""
    for _ in range(steps):
        here = f"after {output!r} of {grammar.text!r}"
        ours.fill(mine)
        allowed = tokens_of(mine)
        theirs.fill(other)
        forced = theirs.forced()
        if forced:
            assert tokens_of(other) == forced[:1], here
            assert allowed == each_allowed(theirs._matcher, with_text), here
        else:
            assert (mine == other).all(), here
        assert ours.complete == (set(allowed) <= set(tokenizer.eos_token_ids)), here
        if output:
            assert theirs.complete == ours.complete, here
        assert ours.forced_bytes() == theirs._matcher.compute_ff_bytes(), here
        going_on = [token for token in allowed if token not in tokenizer.eos_token_ids]
        if not going_on:
            return True
        token = rng.choice(going_on)
        output += tokenizer.token_bytes(token)
        ours.accept([token])
        theirs.accept([token])
    return False


@settings(QUICK, max_examples=150)
@given(patterns(), vocabularies(), st.randoms(use_true_random=False))
def test_masks_ends_and_forced_bytes_agree(pattern: str, tokenizer: ListTokenizer, rng: random.Random) -> None:
    assume(pattern.count("{") + pattern.count("+") < 4)  # repeated repetitions of large classes take seconds
    event(f"reached an end: {walk_both(regex(pattern), tokenizer, tokenizer.vocab_size + 5, rng)}")


@settings(QUICK, max_examples=60)
@given(patterns(), st.randoms(use_true_random=False))
def test_they_agree_over_the_built_in_vocabulary(pattern: str, rng: random.Random) -> None:
    walk_both(regex(pattern), BUILTIN, BUILTIN.vocab_size, rng)


@settings(QUICK, max_examples=60)
@given(st.lists(st.text(SIGNS, min_size=1), min_size=1, max_size=6), vocabularies(), st.randoms(use_true_random=False))
def test_they_agree_on_choices(options: list[str], tokenizer: ListTokenizer, rng: random.Random) -> None:
    walk_both(choices(options), tokenizer, tokenizer.vocab_size, rng)


@pytest.mark.parametrize(
    "pattern",
    [
        r'\{"name": "[\w ]{1,10}", "age": \d{1,3}\}',
        r"(19|20)\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])",
        r"((25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)",
        r"[\w.+-]+@[a-z0-9-]+(\.[a-z]{2,4}){1,2}",
        r"(a|b)*a(a|b){5}",
        r"\s*[^\s\d]\D*\S",
        r"^[^\W\d]\w*$",
        r"[à-üЀ-ӿ一-鿿😀-😏]+",
    ],
)
def test_they_agree_on_patterns_that_people_write(pattern: str) -> None:
    for seed in range(3):
        walk_both(regex(pattern), BUILTIN, BUILTIN.vocab_size, random.Random(seed), steps=25)


@pytest.mark.parametrize(("pattern", "n_characters"), [(r"\d", 760), (r"\s", 25), (r"\w", 144667), (r"\D", 1111304)])
def test_classes_hold_the_same_characters_of_all_unicode(pattern: str, n_characters: int) -> None:
    """If llguidance has moved on to a later Unicode, `unicode_classes` must too."""
    bytes_alone = ListTokenizer([])
    setting = {"vocab_size": bytes_alone.vocab_size, "eos": (), "limits": LIMITS}
    ours = FsmBackend(bytes_alone, **setting).compile(regex(pattern))
    theirs = LLGuidance(bytes_alone, **setting).compile(regex(pattern)).matcher()
    mask, found, ahead = words(bytes_alone.vocab_size), 0, [b""]
    while ahead:
        begun = ahead.pop()
        theirs.accept([2 + byte for byte in begun])
        theirs.fill(mask)
        state = ours.automaton.walk(START, begun)
        nexts = bytes(token - 2 for token in tokens_of(mask))
        assert nexts == ours.automaton.next_bytes(state), begun
        theirs._matcher.rollback(len(begun))
        for byte in nexts:
            length = 1 + sum((begun + bytes([byte]))[0] >= least for least in (0xC0, 0xE0, 0xF0))
            if length == len(begun) + 1:
                found += 1
            else:
                ahead.append(begun + bytes([byte]))
    assert found == n_characters


def test_of_two_tokens_with_one_text_ours_allows_both() -> None:
    """llguidance leaves one out where only one text may follow; the text is the same."""
    twins = ListTokenizer([b"0"])
    setting = {"vocab_size": twins.vocab_size, "eos": (1,), "limits": LIMITS}
    mask = words(twins.vocab_size)
    for made, expected in ((FsmBackend(twins, **setting), [2 + ord("0"), 258]), (LLGuidance(twins, **setting), [50])):
        matcher = made.compile(regex("a0")).matcher()
        matcher.accept([2 + ord("a")])
        matcher.fill(mask)
        assert tokens_of(mask) == expected
