"""What is taken off a prompt's end, and what may come in its place: the law, against a reading of it token by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.byte_pair import BytePairTokenizer
from engine.constraints import Grammar, any_json, choices, ebnf, json_schema, lark, regex, tools
from engine.constraints.backends import make_backend
from engine.constraints.base import GrammarError, Mask, Matcher
from engine.constraints.healing import Healed, Healing
from engine.constraints.session import Constraints
from engine.request import SamplingParams
from engine.tokenizer import HFTokenizer, Tokenizer, builtin_tokenizer, load_tokenizer
from tests.engine.constraints.vocabularies import SIGNS, ListTokenizer, token_texts

BUILTIN = builtin_tokenizer()
WEATHER = {"sky": {"type": "object", "properties": {"wet": {"type": "boolean"}}, "required": ["wet"]}}


class Listed(ListTokenizer):
    added_tokens: Mapping[str, int] = MappingProxyType({"<s>": 0, "</s>": 1})


@pytest.fixture(scope="module")
def tinyllama(data_dir: Path) -> HFTokenizer:
    return load_tokenizer(data_dir / "tokenizers" / "tinyllama_tokenizer.json")


def law(tokenizer: Tokenizer) -> Healing:
    return Healing(tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids)


def tokens_of(mask: Mask) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def with_text(tokenizer: Tokenizer) -> dict[int, bytes]:
    silent = {*tokenizer.special_ids, *tokenizer.eos_token_ids}
    texts = {i: tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size) if i not in silent}
    return {i: text for i, text in texts.items() if text}


def allowed(tokenizer: Tokenizer, rest: bytes) -> set[int]:
    return {i for i, text in with_text(tokenizer).items() if text.startswith(rest) or rest.startswith(text)}


def is_text(text: bytes) -> bool:
    return text.decode(errors="replace").encode() == text


def runs(tokenizer: Tokenizer, prompt: Sequence[int], control: set[int]) -> list[int]:
    """Read off the law, longest first."""
    texts = with_text(tokenizer).values()
    found = []
    for n in range(len(prompt) - 1, 0, -1):
        rest = b"".join(map(tokenizer.token_bytes, prompt[-n:]))
        spoken = all(token not in control and tokenizer.token_bytes(token) for token in prompt[-n:])
        if spoken and is_text(rest) and any(text.startswith(rest) and text != rest for text in texts):
            found.append(n)
    return found


prompts = st.text(SIGNS, max_size=12)
listed = st.lists(token_texts(), max_size=40, unique=True).map(Listed)


@settings(max_examples=150)
@given(listed, prompts, st.binary(min_size=1, max_size=4))
def test_the_law_in_small_vocabularies(tokenizer: Listed, prompt: str, any_bytes: bytes) -> None:
    healing = law(tokenizer)
    ids = [0, *tokenizer.encode(prompt)]
    assert healing.runs(np.array(ids)) == runs(tokenizer, ids, {0, 1})
    for rest in (any_bytes, *(text for text in tokenizer._texts[-4:] if text)):
        assert tokens_of(healing.may_come(rest)) == allowed(tokenizer, rest)


@settings(max_examples=100)
@given(st.lists(st.integers(0, BUILTIN.vocab_size - 1), min_size=1, max_size=8))
def test_the_law_for_prompts_of_any_tokens(ids: list[int]) -> None:
    assert law(BUILTIN).runs(np.array(ids)) == runs(BUILTIN, ids, {0, 1, 2})


def test_the_law_in_a_real_vocabulary(tinyllama: HFTokenizer) -> None:
    healing, texts = law(tinyllama), with_text(tinyllama)
    for prompt in ("", " ", "http:", "Hello", "The ", "https://www", "It is 中", "naï", "x = [1, 2", "\n"):
        ids = tinyllama.encode(prompt)
        assert healing.runs(np.array(ids)) == runs(tinyllama, ids, {*tinyllama.special_ids}), prompt
        for n in healing.runs(np.array(ids)):
            rest = healing.text(ids[-n:])
            came = {i for i, text in texts.items() if text.startswith(rest) or rest.startswith(text)}
            assert tokens_of(healing.may_come(rest)) == came


def test_a_colon_is_taken_back_where_a_token_goes_on_from_it(tinyllama: HFTokenizer) -> None:
    ids = tinyllama.encode("http:")
    assert law(tinyllama).runs(np.array(ids)) == [1]
    assert tinyllama.encode("http://")[-1] in tokens_of(law(tinyllama).may_come(b":"))


def test_a_prompt_keeps_its_first_token_and_control_tokens() -> None:
    space = BUILTIN.encode(" ", add_special_tokens=False)
    healing = law(BUILTIN)
    assert healing.runs(np.array(space)) == [], "nothing would be left to compute"
    assert healing.runs(np.array([1])) == []
    assert healing.runs(np.array([*space, *space])) == [1]
    assert healing.runs(np.array([*space, *space, 2])) == [], "an end of sequence is nobody's text"


def test_added_tokens_are_never_taken_back_unless_they_are_white_space() -> None:
    class Added(BytePairTokenizer):
        """Two tokens of the vocabulary are added ones that aren't special."""

    tokenizer = Added([(32, 32), (91, 65), (256, 97), (257, 97)], ["<s>", "</s>"], "<s>", "</s>")
    spaces, bracket = 258, 259
    assert [tokenizer.token_bytes(i) for i in (spaces, bracket)] == [b"  ", b"[A"]
    assert law(tokenizer).runs(np.array([0, spaces])) == law(tokenizer).runs(np.array([0, bracket])) == [1]
    tokenizer.added_tokens = {**tokenizer.added_tokens, "  ": spaces, "[A": bracket}
    assert law(tokenizer).runs(np.array([0, spaces])) == [1]
    assert law(tokenizer).runs(np.array([0, bracket])) == []


def test_no_character_is_cut() -> None:
    end = "é".encode()[1]
    tokenizer = BytePairTokenizer([(end, 97), (195, end)], ["<s>", "</s>"], "<s>", "</s>")  # "\xa9a", "é"
    assert tokenizer.token_bytes(258) == "é".encode()[1:] + b"a"
    assert law(tokenizer).runs(np.array([0, 2 + 195, 2 + end])) == [], "its end alone begins a token"
    wider = BytePairTokenizer([(195, end), (256, 97)], ["<s>", "</s>"], "<s>", "</s>")  # "é", "éa"
    assert law(wider).runs(np.array([0, 2 + 195, 2 + end])) == [2]


# ---- following one output


@settings(max_examples=150)
@given(listed, st.text(SIGNS, min_size=1, max_size=5), st.data())
def test_an_output_says_what_was_taken_back_and_then_is_free(tokenizer: Listed, text: str, data: st.DataObject) -> None:
    rest, said = text.encode(), b""
    output = Healed(law(tokenizer), rest)
    assert output.begin(10) == ()
    while (mask := output.mask()) is not None:
        left = rest[len(said) :]
        assert tokens_of(mask) == allowed(tokenizer, left)
        token = data.draw(st.sampled_from(sorted(tokens_of(mask))))
        assert output.follow(token, 10) == ((), False)
        said += tokenizer.token_bytes(token)
        assert said.startswith(rest) or rest.startswith(said)
    assert said.startswith(rest)
    assert output.follow(5, 10) == ((), False), "anything goes"
    assert not output.needs_mask


def test_a_token_that_says_something_else_is_no_output() -> None:
    with pytest.raises(GrammarError, match="where the output is to begin with b'ab'"):
        Healed(law(BUILTIN), b"ab").follow(BUILTIN.encode("x", add_special_tokens=False)[0], 10)


# ---- before a grammar


def matcher(backend: str, grammar: Grammar, tokenizer: Tokenizer = BUILTIN) -> Matcher:
    if backend == "xgrammar":
        pytest.importorskip("xgrammar")
    made = make_backend(backend, tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids)
    return made.compile(grammar).matcher()


def may_come(one: Matcher, tokenizer: Tokenizer = BUILTIN) -> set[int]:
    mask = np.zeros(-(-tokenizer.vocab_size // 32), np.int32)
    one.fill(mask)
    return tokens_of(mask)


EVERY = [
    *((backend, regex(r"(ab|[0-9]{2,4}) ?é*")) for backend in ("llguidance", "xgrammar", "fsm")),
    *((backend, choices(["over there", "or not", '"'])) for backend in ("llguidance", "xgrammar", "fsm")),
    *((backend, json_schema(WEATHER["sky"])) for backend in ("llguidance", "xgrammar")),
    *((backend, any_json()) for backend in ("llguidance", "xgrammar")),
    *((backend, ebnf('root ::= word " " word\nword ::= [a-c]+')) for backend in ("llguidance", "xgrammar")),
    ("llguidance", lark('start: A B\nA: /[0-9]+/\nB: "x"\n%ignore / +/')),
    ("llguidance", tools(WEATHER, begin="<call>", end="</call>")),
]


@pytest.mark.parametrize("head", [" ", 'say "', "é\n", "\\d[a"])
@pytest.mark.parametrize(("backend", "grammar"), EVERY, ids=lambda value: getattr(value, "kind", value))
def test_behind_a_text_a_grammar_allows_what_it_allows_alone(backend: str, grammar: Grammar, head: str) -> None:
    plain, behind = matcher(backend, grammar), matcher(backend, grammar.after(head))
    behind.accept([2 + 1 + byte for byte in head.encode()])  # one byte a token
    for _ in range(8):
        assert may_come(behind) == may_come(plain)
        assert behind.complete == plain.complete
        going_on = sorted(may_come(plain) - {*BUILTIN.eos_token_ids})
        if not going_on:
            break
        token = going_on[len(going_on) * 2 // 3]
        plain.accept([token])
        behind.accept([token])


@pytest.mark.parametrize("backend", ["xgrammar", "fsm"])
@settings(max_examples=60)
@given(tokenizer=listed, head=st.text(SIGNS, min_size=1, max_size=3), option=st.text(SIGNS, min_size=1, max_size=4))
def test_behind_a_text_a_token_may_lie_over_the_border(backend: str, tokenizer: Listed, head: str, option: str) -> None:
    whole = (head + option).encode()
    fits = {i for i, text in with_text(tokenizer).items() if whole.startswith(text)}
    assert may_come(matcher(backend, choices([option]).after(head), tokenizer), tokenizer) == fits


def test_grammars_behind_different_texts_are_different() -> None:
    grammar = regex("a")
    texts = [grammar, grammar.after("b"), grammar.after("c"), regex("ba"), regex("a\0b")]
    assert len({one.digest for one in texts}) == len(texts)
    assert all(Grammar.from_data(one.as_data()) == one for one in texts)


# ---- how much is taken back


SMALL = BytePairTokenizer([(32, 116), (104, 101), (256, 257), (104, 97)], ["<s>", "</s>"], "<s>", "</s>")
"""Beyond bytes: ' t', 'he', ' the', 'ha'."""


def healed(prompt: str, tokenizer: Tokenizer = SMALL, **params: Any) -> list[bytes]:
    constraints = Constraints(tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids)
    ids = np.array(tokenizer.encode(prompt))
    kept, taken_back = constraints.heal(ids, SamplingParams(**{"token_healing": True, **params}))
    assert [*kept.tolist(), *taken_back] == ids.tolist()
    return [tokenizer.token_bytes(token) for token in taken_back]


def test_the_longest_run_that_a_token_goes_on_from_is_taken_back() -> None:
    assert healed("hello th") == [b" t", b"h"]
    assert healed("hello h") == [b"h"]
    assert healed("hello the") == healed("hello x") == []
    assert healed("hello th", token_healing=False) == []


def test_a_grammar_has_its_say_in_what_is_taken_back() -> None:
    assert healed("hello th", grammar=choices(["e other", "x"])) == [b" t", b"h"], "' the'"
    assert healed("hello th", grammar=choices(["at", "x"])) == [b"h"], "'ha'"
    assert healed("hello th", grammar=choices(["is", "x"])) == [], "no token lies over the border"
