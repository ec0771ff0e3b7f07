"""Streamed text against the decoding of all tokens, and stops against a reader of the growing text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.detokenizer import IncrementalDetokenizer, OutputText
from engine.tokenizer import Tokenizer, builtin_tokenizer, load_tokenizer

EXAMPLES = settings(max_examples=250, deadline=None)
ALPHABET = st.sampled_from([*"ab \n.", "é", "日", "🙂", "👩‍🚀", "\ufffd", "the ", "▁", "stop"])
TEXT = st.one_of(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=30), st.lists(ALPHABET, max_size=25).map("".join)
)


@pytest.fixture(scope="session", params=["builtin", "tinyllama", "stories"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "builtin":
        return builtin_tokenizer()
    if request.param == "tinyllama":
        data_dir: Path = request.getfixturevalue("data_dir")
        return load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")
    models_dir: Path = request.getfixturevalue("models_dir")
    return load_tokenizer(models_dir / "stories260k")


def stream(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def token_lists(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Real encodings, and random tokens with many that are single bytes."""
    size = tokenizer.vocab_size
    anything = st.one_of(st.integers(0, min(size - 1, 300)), st.integers(0, size - 1))
    return st.one_of(
        TEXT.map(lambda text: tokenizer.encode(text, add_special_tokens=False)), st.lists(anything, max_size=15)
    )


@EXAMPLES
@given(data=st.data())
def test_joined_pieces_are_the_decoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(token_lists(tokenizer))
    assert "".join(stream(tokenizer, [], ids)) == tokenizer.decode(ids)
    assert "".join(stream(tokenizer, [1], ids)) == tokenizer.decode([1, *ids]), "a special token is no text"


@EXAMPLES
@given(data=st.data())
def test_output_continues_the_prompt(tokenizer: Tokenizer, data: st.DataObject) -> None:
    prompt = data.draw(token_lists(tokenizer))
    ids = data.draw(token_lists(tokenizer))
    joined = "".join(stream(tokenizer, prompt, ids))
    whole = tokenizer.decode(prompt + ids)
    assert whole.endswith(joined)
    before = tokenizer.decode(prompt)
    if not before.endswith("\ufffd"):
        assert before + joined == whole
    else:
        assert len(whole) - len(joined) in (len(before), len(before) - 1), "at most a character that the prompt began"


@EXAMPLES
@given(data=st.data())
def test_no_piece_holds_a_part_of_a_character(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(TEXT).replace("\ufffd", "?")
    ids = tokenizer.encode(text)
    pieces = stream(tokenizer, [], ids)
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == tokenizer.decode(ids)


def test_a_character_of_four_tokens_comes_out_with_its_last(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False)[-4:]
    assert stream(tokenizer, [], ids) == ["", "", "", "🙂", ""]
    assert stream(tokenizer, ids[:2], ids[2:]) == ["", "🙂", ""], "also when the prompt began it"
    assert stream(tokenizer, [], ids[:2]) == ["", "", "\ufffd"]


def test_sentencepiece_words_keep_their_space_after_text_and_lose_it_at_the_start(data_dir: Path) -> None:
    tokenizer = load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")
    hello = tokenizer.encode("hello", add_special_tokens=False)
    assert "".join(stream(tokenizer, [1], hello)) == "hello"
    assert "".join(stream(tokenizer, tokenizer.encode("Say"), hello)) == " hello"
    assert "".join(stream(tokenizer, [*tokenizer.encode("Say"), 1, 1], hello)) == " hello"


def test_image_positions_of_a_prompt_have_no_text() -> None:
    tokenizer = builtin_tokenizer()
    assert stream(tokenizer, [-5, -6], tokenizer.encode("a", add_special_tokens=False)) == ["a", ""]


def read_by_token(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], stop: Sequence[str], min_tokens: int
) -> tuple[str, str | None, int]:
    """The law in slow motion: (text, the stop that ended it, tokens read)."""
    before = 0
    for n in range(1, len(ids) + 1):
        pieces = stream(tokenizer, prompt, ids[:n])[:-1]
        text = "".join(pieces)
        if n >= min_tokens:
            ends = [
                (start, order)
                for order, s in enumerate(stop)
                for start in range(len(text) - len(s) + 1)
                if text.startswith(s, start) and start + len(s) > before
            ]
            if ends:
                start, order = min(ends)
                return text[:start], stop[order], n
        before = len(text)
    return "".join(stream(tokenizer, prompt, ids)), None, len(ids)


STOPS = st.lists(
    st.one_of(st.sampled_from(["a", "ab", "aa", "ba", "aba", "\n\n", ". ", "🙂", "日é", "stop", "pst", "top"]),
              st.lists(ALPHABET, min_size=1, max_size=3).map("".join)),
    max_size=4,
)  # fmt: skip


@settings(max_examples=600, deadline=None)
@given(data=st.data())
def test_stops_cut_where_a_reader_of_the_growing_text_would(tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.one_of(TEXT, st.lists(st.sampled_from([*"aabb ", "stop", "sto"]), max_size=30).map("".join)))
    prompt = tokenizer.encode(data.draw(st.sampled_from(["", "a", "sto"])))
    ids = tokenizer.encode(text, add_special_tokens=False)
    stop, min_tokens = data.draw(STOPS), data.draw(st.sampled_from([0, 0, 1, 3, 8]))
    wanted, match, n_read = read_by_token(tokenizer, prompt, ids, stop, min_tokens)

    out = OutputText(tokenizer, prompt, stop, min_tokens)
    streamed = ""
    for n, token in enumerate(ids, 1):
        streamed += out.push(token)
        assert out.text.startswith(streamed)
        assert wanted.startswith(streamed), "streamed text is never taken back"
        if out.stopped_by is not None:
            assert n == n_read
            break
    if out.stopped_by is None:
        streamed += out.flush()
    assert (out.text, out.stopped_by) == (wanted, match)
    assert streamed == wanted


@settings(max_examples=400, deadline=None)
@given(
    pieces=st.lists(st.sampled_from([*"abc", "ab", "ba"]), max_size=20),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_held_text_is_exactly_what_may_still_become_a_stop(pieces: list[str], stop: list[str]) -> None:
    tokenizer = builtin_tokenizer()
    out = OutputText(tokenizer, [], stop)
    streamed = ""
    for token in tokenizer.encode("".join(pieces), add_special_tokens=False):
        streamed += out.push(token)
        if out.stopped_by is not None:
            break
        held = out.text[len(streamed) :]
        starts = [i for i in range(len(out.text)) if any(s.startswith(out.text[i:]) for s in stop)]
        assert len(streamed) == min(starts, default=len(out.text)), f"held {held!r}"


def test_a_stop_across_token_borders_is_cut_exactly() -> None:
    tokenizer = builtin_tokenizer()
    out = OutputText(tokenizer, tokenizer.encode("Q"), stop=("\nObservation",))
    pieces = [
        out.push(t)
        for t in tokenizer.encode("Action: x\nObs\nObservation: y", add_special_tokens=False)
        if not out.stopped_by
    ]
    assert "".join(pieces) == out.text == "Action: x\nObs"
    assert out.stopped_by == "\nObservation"
    assert out.flush() == ""
    with pytest.raises(RuntimeError, match="no token can follow"):
        out.push(5)


def test_a_stop_completed_too_early_never_counts_but_one_that_began_early_does() -> None:
    tokenizer = builtin_tokenizer()
    x, y = (tokenizer.encode(c, add_special_tokens=False)[0] for c in "xy")
    out = OutputText(tokenizer, [], stop=("xy",), min_tokens=3)
    assert [out.push(t) for t in (x, y, x)] == ["", "xy", ""]
    out.push(y)
    assert (out.text, out.stopped_by) == ("xy", "xy")


def test_a_stop_completed_too_early_does_not_count_later_when_a_longer_stop_holds_it_back() -> None:
    tokenizer = builtin_tokenizer()
    x, y, z = (tokenizer.encode(c, add_special_tokens=False)[0] for c in "xyz")
    out = OutputText(tokenizer, [], stop=("xy", "xyxy"), min_tokens=3)
    assert [out.push(t) for t in (x, y, z)] == ["", "", "xyz"]
    assert out.stopped_by is None


def test_text_held_back_comes_out_at_the_end() -> None:
    tokenizer = builtin_tokenizer()
    out = OutputText(tokenizer, [], stop=("abc\ufffd!",))
    ids = tokenizer.encode("zabc🙂", add_special_tokens=False)[:-1]
    assert "".join(out.push(t) for t in ids) == "z"
    assert out.flush() == "abc\ufffd"
    assert out.text == "zabc\ufffd"
    assert out.stopped_by is None


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty string"):
        OutputText(builtin_tokenizer(), [], stop=("a", ""))
