"""llguidance behind our interface: masks, forced tokens, ends, tool calls, limits and messages."""

from __future__ import annotations

import json
import random
import re
from concurrent.futures import ThreadPoolExecutor

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.constraints import (
    GrammarError,
    ToolChoice,
    any_json,
    choices,
    ebnf,
    json_schema,
    lark,
    regex,
    tools,
)
from engine.constraints.base import GrammarLimits
from engine.constraints.canonical import inner_encode
from engine.constraints.llg import LLGuidance
from engine.tokenizer import builtin_tokenizer, load_tokenizer
from tests.engine.constraints.vocabularies import ListTokenizer

BUILTIN = builtin_tokenizer()
PERSON = {
    "type": "object",
    "properties": {"full name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["full name", "age"],
    "additionalProperties": False,
}


def backend(tokenizer, *, vocab_size=None, eos=None, **limits):
    eos = tokenizer.eos_token_ids if eos is None else eos
    return LLGuidance(tokenizer, vocab_size=vocab_size or tokenizer.vocab_size, eos=eos, limits=GrammarLimits(**limits))


OURS = backend(BUILTIN)


@pytest.fixture(scope="module")
def llama(data_dir):
    """A sentencepiece-like tokenizer: a space before a text's first word."""
    path = data_dir / "tokenizers" / "tinyllama_tokenizer.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    return load_tokenizer(path)


def allowed(matcher, vocab_size=BUILTIN.vocab_size):
    mask = np.full(-(-vocab_size // 32), -1, np.int32)
    matcher.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def text_of(tokens, tokenizer=BUILTIN):
    return b"".join(map(tokenizer.token_bytes, tokens))


def accept_text(matcher, text, tokenizer=BUILTIN):
    matcher.accept(inner_encode(tokenizer)(text))


def outputs(grammar, ours=OURS, tokenizer=BUILTIN, *, vocab_size=None, n=5, longest=120, seed=0):
    """Outputs made by chance: (text, whether it ended, forced tokens)."""
    rng = random.Random(seed)
    compiled = ours.compile(grammar)
    for _ in range(n):
        matcher = compiled.matcher()
        tokens, n_forced, ended = [], 0, False
        while len(tokens) < longest and not ended:
            if forced := matcher.forced():
                matcher.accept(forced)
                tokens += forced
                n_forced += len(forced)
            elif matcher.complete:
                ended = True
            else:
                choice = rng.choice(allowed(matcher, vocab_size or tokenizer.vocab_size))
                ended = choice in tokenizer.eos_token_ids
                matcher.accept([choice])
                tokens += [] if ended else [choice]
        yield text_of(tokens, tokenizer).decode(errors="replace"), ended, n_forced


# ---- what may come, and when it ends


def test_the_end_is_allowed_where_the_text_may_end_and_the_output_is_complete_where_it_must():
    matcher = OURS.compile(choices(["a", "ab", "né"])).matcher()
    assert {text_of([t]) for t in allowed(matcher)} == {b"a", b"ab", b"n"} & {
        BUILTIN.token_bytes(t) for t in range(512)
    }
    assert not matcher.complete
    accept_text(matcher, "a")
    assert not matcher.complete
    assert sorted(text_of([t]) for t in allowed(matcher)) == [b"", b"b"]
    assert 2 in allowed(matcher)
    accept_text(matcher, "b")
    assert matcher.complete
    assert matcher.forced() == []


def test_every_end_of_sequence_token_is_set_where_an_end_is_allowed():
    matcher = backend(BUILTIN, eos=(2, 0)).compile(regex("a?")).matcher()
    assert [t for t in allowed(matcher) if t < 3] == [0, 2]
    matcher.accept([0])
    assert matcher.complete


def test_without_an_end_of_sequence_token_an_output_ends_where_nothing_may_follow():
    matcher = backend(BUILTIN, eos=()).compile(regex("ab?")).matcher()
    accept_text(matcher, "a")
    assert sorted(text_of([t]) for t in allowed(matcher)) == [b"b"]
    accept_text(matcher, "b")
    assert matcher.complete


def test_an_end_that_comes_too_early_and_a_token_after_the_end_are_errors():
    matcher = OURS.compile(regex("ab")).matcher()
    with pytest.raises(GrammarError, match="ended"):
        matcher.accept([2])
    matcher = OURS.compile(regex("a?")).matcher()
    matcher.accept([2])
    with pytest.raises(GrammarError, match="after the end"):
        accept_text(matcher, "a")


def test_a_token_that_is_not_allowed_is_an_error_and_stays_one():
    matcher = OURS.compile(regex("[ab]+")).matcher()
    with pytest.raises(GrammarError, match="left the grammar"):
        accept_text(matcher, "c")
    for use in (matcher.forced, lambda: allowed(matcher), lambda: accept_text(matcher, "a")):
        with pytest.raises(GrammarError):
            use()
    assert not matcher.complete


def test_special_tokens_are_never_text():
    matcher = OURS.compile(regex("(?s:.*)")).matcher()
    assert not {0, 1} & set(allowed(matcher))
    matcher = OURS.compile(regex("(<s>|</s>)")).matcher()
    assert text_of(matcher.forced()) == b"<"


def test_a_json_object_closes_at_its_brace():
    matcher = OURS.compile(json_schema(PERSON)).matcher()
    accept_text(matcher, '{"full name": "Jo", "age": 7')
    assert not matcher.complete
    accept_text(matcher, "}")
    assert matcher.complete


def test_any_json_is_one_object():
    matcher = OURS.compile(any_json()).matcher()
    assert text_of(matcher.forced() or [next(t for t in allowed(matcher))]) == b"{"
    accept_text(matcher, '{"a": [1, {"b": null}], "c": "\\n"}')
    assert matcher.complete


def test_matchers_of_one_grammar_know_nothing_of_each_other():
    compiled = OURS.compile(regex("(ab|cd)"))
    one, other = compiled.matcher(), compiled.matcher()
    accept_text(one, "a")
    assert text_of(other.forced()) == b""
    accept_text(other, "c")
    assert text_of(allowed(one)) == b"b"
    assert text_of(allowed(other)) == b"d"


def test_grammars_may_be_compiled_and_followed_by_several_threads_at_once():
    shared = OURS.compile(regex("(ab|cd|é){30}"))

    def follow(i):
        own = OURS.compile(regex(f"x{i}(ab|cd){{30}}y{i}"))
        rng, texts = random.Random(i), []
        for compiled in (own, shared):
            matcher, tokens = compiled.matcher(), []
            while not matcher.complete:
                more = matcher.forced() or [rng.choice(allowed(matcher))]
                matcher.accept(more)
                tokens += more
            texts.append(text_of(tokens).decode())
        return texts

    with ThreadPoolExecutor(4) as threads:
        for i, (own, of_all) in enumerate(threads.map(follow, range(12))):
            assert re.fullmatch(f"x{i}(ab|cd){{30}}y{i}", own)
            assert re.fullmatch("(ab|cd|é){30}", of_all)


def test_states_that_one_output_builds_are_not_counted_against_the_next():
    grammar = regex("(.*a.{9}|.*b.{9}|[a-z ]*)x")
    limited = backend(BUILTIN, max_states=2000)
    assert len(list(outputs(grammar, limited, n=40, longest=100))) == 40


# ---- forced tokens


def test_forced_tokens_are_the_tokenizers_own_and_start_with_the_output():
    forced = OURS.compile(json_schema(PERSON)).matcher().forced()
    text = text_of(forced).decode()
    assert '{"full name": "'.startswith(text)
    assert len(text) > 10
    assert BUILTIN.encode(text, add_special_tokens=False) == forced


def test_sentencepiece_puts_no_space_before_forced_text(llama):
    matcher = backend(llama).compile(json_schema(PERSON)).matcher()
    forced = matcher.forced()
    assert text_of(forced, llama).startswith(b'{"full name"')
    matcher.accept(forced)
    accept_text(matcher, ' "Jo", ' if text_of(forced, llama).endswith(b":") else '"Jo", ', llama)
    assert not text_of(matcher.forced(), llama).startswith(b" ")


def test_where_the_text_spells_a_special_token_its_characters_are_forced(llama):
    matcher = backend(llama).compile(regex("x</s><s>!")).matcher()
    matcher.accept(matcher.forced())
    written = [text for text, ended, _ in outputs(regex("x</s><s>!"), backend(llama), llama, n=1) if ended]
    assert written == ["x</s><s>!"]


@pytest.mark.parametrize("vocab_size", [300, 512, 640, 1000])
def test_tokens_outside_the_models_or_the_tokenizers_vocabulary_never_come(vocab_size):
    ours = backend(BUILTIN, vocab_size=vocab_size)
    matcher = ours.compile(regex("(?s:.*)")).matcher()
    assert max(allowed(matcher, vocab_size)) < min(vocab_size, BUILTIN.vocab_size)
    matcher = ours.compile(json_schema(PERSON)).matcher()
    forced = matcher.forced()
    assert forced
    assert max(forced) < vocab_size
    texts = list(outputs(json_schema(PERSON), ours, vocab_size=vocab_size, longest=300))
    assert any(ended for _, ended, _ in texts)


NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x7f"), min_size=1, max_size=12
)
"""Without DEL, which json.dumps writes as it is and llguidance as an escape."""


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=3, unique=True), st.data())
def test_forced_text_is_what_every_output_goes_on_with(names, data):
    """From any point of an output: the forced tokens are what the output says next, each of them is allowed, and none
    ends the output."""
    schema = {"type": "object", "properties": {n: {"enum": [1, n]} for n in names}, "required": names}
    compiled = OURS.compile(json_schema({**schema, "additionalProperties": False}))
    values = [data.draw(st.sampled_from([1, name])) for name in names]
    rest = json.dumps(dict(zip(names, values)), ensure_ascii=False).encode()
    matcher = compiled.matcher()
    while rest:
        forced = matcher.forced()
        for token in forced:
            assert token in allowed(matcher)
            assert token not in BUILTIN.eos_token_ids
            matcher.accept([token])
        assert rest.startswith(text_of(forced))
        rest = rest[len(text_of(forced)) :]
        if rest and not forced:
            options = [t for t in allowed(matcher) if t not in BUILTIN.eos_token_ids and rest.startswith(text_of([t]))]
            token = data.draw(st.sampled_from(options))
            matcher.accept([token])
            rest = rest[len(text_of([token])) :]
    assert matcher.complete


# ---- kinds


@pytest.mark.parametrize(
    "pattern", [r"(a|ab)(c|bcd)*", r"[0-9]{3}-[a-f]{2,4}", r"(foo|bar)( (foo|bar)){0,3}", r"é+|(x\.y)?z", "^a.c$"]
)
def test_regex_outputs_match_the_whole_pattern(pattern):
    ended = [text for text, end, _ in outputs(regex(pattern), n=20) if end]
    assert ended
    assert all(re.fullmatch(pattern, text) for text in ended)


def test_choices_with_common_beginnings_signs_and_unicode():
    texts = ["no", "not", "nothing", "né\n", '"', "\\", "/", "日本", "a\tb\0c"]
    found = {text for text, ended, _ in outputs(choices(texts), n=150) if ended}
    assert found == set(texts)


def test_an_ebnf_grammar():
    grammar = ebnf('root ::= sum # a sum\nsum ::= num (op num)+\nop ::= [+*]\nnum ::= "0" | [1-9] [0-9]{0,2}\n')
    ended = [text for text, end, _ in outputs(grammar, n=20) if end]
    assert ended
    assert all(re.fullmatch(r"(0|[1-9]\d{0,2})([+*](0|[1-9]\d{0,2}))+", text) for text in ended)


def test_a_lark_grammar_may_name_special_tokens_but_never_the_end():
    ours = backend(BUILTIN)
    matcher = ours.compile(lark('start: "a" <[0]> "b"')).matcher()
    accept_text(matcher, "a")
    assert allowed(matcher) == [0]
    matcher = ours.compile(lark('start: "a" <[2]> "b"')).matcher()
    accept_text(matcher, "a")
    assert matcher.forced() == []
    with pytest.raises(GrammarError, match="no token"):
        allowed(matcher)


def test_what_the_client_asks_of_the_library_in_a_schema_has_no_say():
    with pytest.raises(GrammarError, match="uniqueItems"):
        OURS.compile(json_schema({"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}))


# ---- tool calls

QUERY = {"properties": {"q": {"$ref": "#/$defs/text"}}, "required": ["q"], "$defs": {"text": {"type": "string"}}}
CALL = '<call>{"name": "find", "arguments": {"q": "x"}}</call>'


def find_or_add(**options):
    return tools({"find": QUERY, "add": PERSON}, begin="<call>", end="</call>", **options)


def served(grammar, text, ours=OURS, tokenizer=BUILTIN):
    """Whether the text is allowed; whether it must end there."""
    matcher = ours.compile(grammar).matcher()
    try:
        accept_text(matcher, text, tokenizer)
    except GrammarError:
        return False, False
    may_end = matcher.complete or (not matcher.forced() and not {2}.isdisjoint(allowed(matcher, tokenizer.vocab_size)))
    return may_end, matcher.complete


@pytest.mark.parametrize(
    ("choice", "parallel", "text", "may_end", "must_end"),
    [
        (ToolChoice.AUTO, True, "Hello, <cal", True, False),
        (ToolChoice.AUTO, True, f"Let me see {CALL}", True, False),
        (ToolChoice.AUTO, True, f"{CALL}{CALL} and\n{CALL}.", True, False),
        (ToolChoice.AUTO, True, f"{CALL}<call>", False, False),
        (ToolChoice.AUTO, False, "Hello", True, False),
        (ToolChoice.AUTO, False, f"Let me see {CALL}", True, True),
        (ToolChoice.AUTO, False, f"{CALL}.", False, False),
        (ToolChoice.REQUIRED, True, CALL, True, False),
        (ToolChoice.REQUIRED, True, f"{CALL}\n{CALL}{CALL}", True, False),
        (ToolChoice.REQUIRED, True, f"{CALL} {CALL}", False, False),
        (ToolChoice.REQUIRED, False, CALL, True, True),
        (ToolChoice.REQUIRED, False, "Hello", False, False),
        (ToolChoice.AUTO, True, CALL.replace("find", "fund"), False, False),
        (ToolChoice.AUTO, True, CALL.replace('"x"', "1"), False, False),
        (ToolChoice.AUTO, True, CALL.replace('{"q": "x"}', "{}"), False, False),
    ],
)
def test_where_calls_may_stand(choice, parallel, text, may_end, must_end):
    assert served(find_or_add(choice=choice, parallel=parallel), text) == (may_end, must_end)


def test_after_begin_a_call_is_forced():
    matcher = OURS.compile(find_or_add()).matcher()
    accept_text(matcher, "Well, <call>")
    assert b'{"name": "'.startswith(text_of(matcher.forced()))
    assert len(text_of(matcher.forced())) > 5


def test_calls_without_a_frame():
    grammar = tools({"find": QUERY}, begin="", end="", choice=ToolChoice.REQUIRED, parallel=False)
    assert served(grammar, '{"name": "find", "arguments": {"q": ""}}') == (True, True)


class WithCallToken(ListTokenizer):
    """Its special token 0 is written `[CALL]`."""

    def encode(self, text, *, add_special_tokens=True):
        head, mark, tail = text.partition("[CALL]")
        if not mark:
            return super().encode(text)
        return [*super().encode(head), 0, *self.encode(tail)]


@pytest.mark.parametrize(("choice", "before"), [(ToolChoice.AUTO, "Let me see"), (ToolChoice.REQUIRED, "")])
def test_a_special_token_that_begins_a_call_is_that_token_and_no_text(choice, before):
    tokenizer = WithCallToken([b'{"', b"name"])
    ours = backend(tokenizer)
    grammar = tools({"find": QUERY}, begin="[CALL](", end=")", choice=choice, parallel=False)
    call = '({"name": "find", "arguments": {"q": "x"}})'
    matcher = ours.compile(grammar).matcher()
    matcher.accept([*tokenizer.encode(before), 0])
    assert text_of(matcher.forced(), tokenizer).startswith(b'({"')
    matcher.accept(tokenizer.encode(call))
    assert matcher.complete
    with pytest.raises(GrammarError):
        ours.compile(grammar).matcher().accept([*tokenizer.encode(before + "[CAL"), 0, *tokenizer.encode("x")])


def test_outputs_with_tools_are_text_and_sound_calls():
    n_calls = 0
    for text, ended, _ in outputs(find_or_add(choice=ToolChoice.REQUIRED), n=30, longest=400):
        if ended:
            for body in re.findall(r"<call>(.*?)</call>(?:\n|$|(?=<call>))", text, re.DOTALL):
                call = json.loads(body)
                jsonschema.validate(call["arguments"], {"find": QUERY, "add": PERSON}[call["name"]])
                n_calls += 1
    assert n_calls > 0


# ---- what can't be served


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (regex(r"(?=a)b"), "look-around"),
        (regex(r"(a)\1"), "backreferences"),
        (regex("a(b"), "unclosed group"),
        (regex("a" + "*" * 5000), "nested"),
        (json_schema(False), "nothing satisfies"),
        (json_schema({"type": "array", "uniqueItems": True}), 'keywords that are not served.*"uniqueItems"'),
        (json_schema({"not": {"type": "null"}}), '"not"'),
        (json_schema({"type": "object", "minProperties": 2}), "minProperties=2 where 1 can be promised"),
        (json_schema({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf .* use anyOf"),
        (json_schema({"type": "string", "format": "color"}), "Unknown format: color"),
        (json_schema({"type": "string", "pattern": "(?!x)y"}), "look-around"),
        (json_schema({"$ref": "https://example.org/schema.json"}), "example.org"),
        (json_schema({"$ref": "#/$defs/none"}), "none"),
        (json_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}), "nothing satisfies"),
        (lark("start: missing"), 'unknown name: "missing"'),
        (lark("start: part\npart[temperature=0.5]: /a+/"), "temperature .* not served"),
        (ebnf("root = a"), "Expected ::="),
        (ebnf('a ::= "x"'), "root"),
        (tools({"f": {"if": {}}}, begin="<c>", end=""), '"if"'),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_grammar_that_cant_be_served_says_why_in_one_line(grammar, says):
    with pytest.raises(GrammarError, match=says) as caught:
        OURS.compile(grammar)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


LONG = {"properties": {f"property{i}": {"type": "string", "pattern": f"^[a-z]+{i}$"} for i in range(50)}}
WIDE = regex("(.*a.{9}|.*b.{9}|[a-z ]*)x")


@pytest.mark.parametrize(
    ("grammar", "limit", "value"),
    [
        (json_schema(LONG), "compile_fuel", 1000),
        (lark("start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(40)) + '\nA40: "a"'), None, None),
        (WIDE, "step_fuel", 100),
        (WIDE, "max_states", 20),
    ],
)
def test_work_of_compiling_and_of_the_first_mask_is_bounded(grammar, limit, value):
    limits = {limit: value} if limit else {}
    with pytest.raises(GrammarError, match=limit or "compile_fuel"):
        backend(BUILTIN, **limits).compile(grammar)


@pytest.mark.parametrize(
    ("grammar", "limits", "says"),
    [
        (WIDE, {"max_states": 150}, "max_states"),
        (regex("(.{0,100}){0,100}"), {}, "step_fuel"),
        (json_schema({"type": "object", "properties": {f"p{i}": {} for i in range(1500)}}), {}, "step_fuel"),
    ],
)
def test_a_limit_that_is_reached_on_the_way_fails_the_output(grammar, limits, says):
    ours = backend(BUILTIN, **limits)
    ours.compile(grammar)
    with pytest.raises(GrammarError, match=says):
        list(outputs(grammar, ours, n=20, longest=400))


@pytest.mark.parametrize(
    "pattern", ["(.*a){50}", "(a|b|cd|e.f){5000}", "(x+x+)+y", r"(\w{1,400}\s){1,20}", "(.*)b.{20}"]
)
def test_patterns_that_blow_up_elsewhere_are_served_step_by_step(pattern):
    assert all(len(text) > 2 for text, _, _ in outputs(regex(pattern), n=2, longest=60))
