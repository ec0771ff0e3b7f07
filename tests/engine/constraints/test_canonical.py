"""The ids of a forced text stay what they are, whatever follows it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.byte_pair import BytePairTokenizer
from engine.constraints.canonical import Canonical, inner_encode, unfinished_character
from engine.tokenizer import HFTokenizer, Tokenizer, builtin_tokenizer, load_tokenizer


def law(tokenizer: Tokenizer) -> Canonical:
    return Canonical(tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids)


@pytest.fixture(scope="module")
def tinyllama(data_dir: Path) -> HFTokenizer:
    """A real sentencepiece vocabulary: puts a space before a text, falls back on bytes."""
    return load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")


def json_like() -> st.SearchStrategy[str]:
    pieces = ['{"', '": "', '", "', "name", "value", "the ", "  ", "\n", "é", "中", "'s", "12", "a", "}", " and", "//"]
    return st.one_of(
        st.lists(st.sampled_from(pieces), min_size=1, max_size=6).map("".join), st.text(min_size=1, max_size=8)
    )


def check(tokenizer: Tokenizer, forced: str, after: str) -> None:
    encode = inner_encode(tokenizer)
    whole = encode(forced + after)
    for following in (None, after.encode()[:1]):
        ids = law(tokenizer).ids(forced.encode(), following=following)
        assert whole is None or whole[: len(ids)] == ids
        assert forced.encode().startswith(b"".join(map(tokenizer.token_bytes, ids)))
    alone = law(tokenizer).ids(forced.encode(), following=b"")
    assert alone == (encode(forced) or [])


@settings(deadline=None, max_examples=150)
@given(json_like(), json_like())
def test_what_follows_changes_nothing(forced: str, after: str) -> None:
    check(builtin_tokenizer(), forced, after)


def test_what_follows_changes_nothing_in_a_real_vocabulary(tinyllama: HFTokenizer) -> None:
    encode, stable = inner_encode(tinyllama), law(tinyllama)

    @settings(deadline=None, max_examples=150)
    @given(json_like(), json_like())
    def holds(forced: str, after: str) -> None:
        ids = stable.ids(forced.encode())
        whole = encode(forced + after)
        assume(whole is not None)  # the text holds the name of a special token, or sentencepiece's own sign
        assert whole is not None
        assert whole[: len(ids)] == ids

    holds()


def test_dropping_the_last_token_would_not_be_enough() -> None:
    """Merges bc, ab, xa: "xab" is x + ab, "xabc" is xa + bc."""
    a, b, c, x = b"abcx"
    tokenizer = BytePairTokenizer([(b, c), (a, b), (x, a)], ("<s>", "</s>"), bos="<s>", eos="</s>")
    spelled = [tokenizer.token_bytes(i) for i in tokenizer.encode("xab", add_special_tokens=False)]
    assert spelled == [b"x", b"ab"]
    assert law(tokenizer).ids(b"xab") == []
    assert law(tokenizer).ids(b"xab", following=b"d") == tokenizer.encode("xab", add_special_tokens=False)


def test_what_may_follow_is_taken_into_account(tinyllama: HFTokenizer) -> None:
    stable = law(tinyllama)

    def texts(forced: bytes, following: bytes | None) -> list[bytes]:
        return [tinyllama.token_bytes(i) for i in stable.ids(forced, following=following)]

    assert texts(b'{"name": "', b"abc") == [b'{"', b"name", b'":', b' "']
    assert texts(b'{"name": "', None) == [b'{"', b"name", b'":']
    assert texts(b"hello ", None) == [b"hello"]


def test_sentencepiece_puts_no_space_into_an_output(tinyllama: HFTokenizer) -> None:
    assert tinyllama.token_bytes(tinyllama.encode("hello", add_special_tokens=False)[0]) == b" hello"
    assert [tinyllama.token_bytes(i) for i in law(tinyllama).ids(b"hello", following=b"")] == [b"hello"]
    assert [tinyllama.token_bytes(i) for i in law(tinyllama).ids(b" hello", following=b"")] == [b" hello"]


def test_a_text_that_spells_a_special_token_has_no_canonical_ids(tinyllama: HFTokenizer) -> None:
    assert law(tinyllama).ids(b"a</s>b", following=b"") == []


def test_the_rest_of_a_character_counts_if_a_token_begins_there() -> None:
    tokenizer = builtin_tokenizer()
    rest = "中".encode()
    assert law(tokenizer).ids(rest[1:] + b"!", following=b"", tail=b"xy" + rest[:1]) == [
        *(3 + byte for byte in rest[1:]),
        3 + ord("!"),
    ]
    assert law(tokenizer).ids(rest[2:], following=b"", tail=b"xy") == []


def test_a_text_that_ends_inside_a_character_is_cut_there() -> None:
    tokenizer = builtin_tokenizer()
    assert law(tokenizer).ids(b"1+\xc3") == tokenizer.encode("1+", add_special_tokens=False)


@pytest.mark.parametrize(
    ("tail", "begun"),
    [
        (b"", b""),
        (b"abc", b""),
        ("é".encode(), b""),
        (b"ab\xc3", b"\xc3"),
        (b"a\xe4\xb8", b"\xe4\xb8"),
        ("中".encode(), b""),
        (b"\xf0\x9f\x98", b"\xf0\x9f\x98"),
        (b"\x9f\x98\x80", b""),
        (b"\xc3a", b""),
    ],
)
def test_unfinished_characters(tail: bytes, begun: bytes) -> None:
    assert unfinished_character(tail) == begun
