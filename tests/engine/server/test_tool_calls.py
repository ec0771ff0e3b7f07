"""Calls of tools: the text that a model writes and the calls that are read from it."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Fast

from engine.constraints import GrammarError, ToolChoice
from engine.constraints.base import GrammarLimits
from engine.constraints.canonical import inner_encode
from engine.constraints.llg import LLGuidance
from engine.request import RequestError
from engine.server.tool_calls import CallArguments, CallEnd, CallStart, Content, ToolCallParser
from engine.server.tool_formats import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    TOOL_FORMATS,
    ToolFormat,
    choose_tool_format,
    make_tool,
)
from engine.tokenizer import HFTokenizer, Tokenizer, builtin_tokenizer

EXAMPLES = settings(max_examples=150, deadline=None)
FORMATS = st.sampled_from(list(TOOL_FORMATS.values()))
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=6)
    | st.sampled_from(['"}', "\\", "</tool_call>", "]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.text(max_size=4), JSON, max_size=3)
NAMES = st.from_regex(re.compile(r"[a-z_]{1,8}"), fullmatch=True)
WORDS = st.lists(
    st.sampled_from(["say", " ", "\n", "<", "<tool_call>", '{"name": ', "[TOOL_CALLS] [", "]", "}", '"', "é"]),
    max_size=6,
).map("".join)


def read(tool_format: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str, bool]]]:
    """The content, and each call's name, arguments and whether it is complete."""
    parser = ToolCallParser(tool_format)
    content: list[str] = []
    calls: list[list[Any]] = []
    events = [*itertools.chain.from_iterable(map(parser.push, pieces)), *parser.finish()]
    for event in events:
        match event:
            case Content(text=text):
                assert text, "nothing is reported as something"
                content.append(text)
            case CallStart(call=call, id=call_id, name=name):
                assert call == len(calls)
                assert call_id
                calls.append([name, "", None])
            case CallArguments(call=call, text=text):
                assert call == len(calls) - 1
                assert calls[-1][2] is None, "arguments come before the call's end"
                calls[-1][1] += text
            case CallEnd(call=call, complete=complete):
                assert call == len(calls) - 1
                calls[-1][2] = complete
    assert parser.n_calls == len(calls)
    return "".join(content), [(name, arguments, complete) for name, arguments, complete in calls]


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in itertools.pairwise([0, *places, len(text)])]


@EXAMPLES
@given(data=st.data(), tool_format=FORMATS, calls=st.lists(st.tuples(NAMES, ARGUMENTS), max_size=3))
def test_calls_are_read_as_they_were_written_however_the_text_is_cut(
    data: st.DataObject, tool_format: ToolFormat, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    text = "".join(tool_format.write(name, arguments) for name, arguments in calls)
    content, found = read(tool_format, data.draw(cut("Let me see. " + text)))
    assert content == ("Let me see." if calls else "Let me see. ")
    assert [(name, json.loads(arguments), complete) for name, arguments, complete in found] == [
        (name, arguments, True) for name, arguments in calls
    ]


@EXAMPLES
@given(data=st.data(), tool_format=FORMATS, text=st.lists(WORDS | st.just("CALL"), max_size=5).map("".join))
def test_any_text_is_read_the_same_however_it_is_cut(data: st.DataObject, tool_format: ToolFormat, text: str) -> None:
    text = text.replace("CALL", tool_format.write("f", {"a": [1, "}"]}))
    text = text[: data.draw(st.integers(0, len(text)))]
    assert read(tool_format, data.draw(cut(text))) == read(tool_format, [text]) == read(tool_format, list(text))


@pytest.fixture(scope="module")
def mistral_like(data_dir: Path) -> HFTokenizer:
    """TinyLlama's vocabulary with Mistral's special token."""
    fast = Fast.from_file(str(data_dir / "tokenizers" / "tinyllama_tokenizer.json"))
    fast.add_special_tokens(["[TOOL_CALLS]"])
    return HFTokenizer(fast, (2,), 1, "mistral")


@pytest.fixture(params=["builtin", "mistral"])
def backend(request: pytest.FixtureRequest) -> tuple[Tokenizer, LLGuidance]:
    tokenizer: Tokenizer = (
        builtin_tokenizer() if request.param == "builtin" else request.getfixturevalue("mistral_like")
    )
    return tokenizer, LLGuidance(
        tokenizer, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos_token_ids, limits=GrammarLimits()
    )


def written(tokenizer: Tokenizer, text: str) -> list[int]:
    """As a model writes it in the middle of its output: the special token is one token, if there is such a token."""
    ids: list[int] = []
    for part in re.split(r"(\[TOOL_CALLS])", text) if "[TOOL_CALLS]" in tokenizer.added_tokens else [text]:
        ids += [tokenizer.added_tokens[part]] if part in tokenizer.added_tokens else inner_encode(tokenizer)(part) or []
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text
    return ids


WEATHER = make_tool(
    "get_weather",
    None,
    {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"]},
)
TIME = make_tool("get_time", None, None)


@pytest.mark.parametrize("choice", list(ToolChoice))
@pytest.mark.parametrize("tool_format", list(TOOL_FORMATS.values()), ids=lambda tool_format: tool_format.name)
def test_the_grammar_allows_what_the_parser_reads(
    backend: tuple[Tokenizer, LLGuidance], tool_format: ToolFormat, choice: ToolChoice
) -> None:
    tokenizer, library = backend
    compiled = library.compile(tool_format.grammar([WEATHER, TIME], choice))
    calls = [("get_weather", {"city": 'Å"}</tool_call>', "days": 3}), ("get_time", {})]
    text = "".join(tool_format.write(name, arguments) for name, arguments in calls)
    text = text if choice is ToolChoice.REQUIRED else "Let me see.\n" + text
    matcher = compiled.matcher()
    matcher.accept(written(tokenizer, text))
    mask = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
    matcher.fill(mask)
    eos = tokenizer.eos_token_ids[0]
    assert mask[eos // 32] >> (eos % 32) & 1, "the output may end after a call"
    content, found = read(tool_format, [text])
    assert content == ("" if choice is ToolChoice.REQUIRED else "Let me see.")
    assert [(name, json.loads(arguments)) for name, arguments, _ in found] == calls


@pytest.mark.parametrize("wrong", [("get_weather", {"city": 3, "days": 3}), ("get_rain", {}), ("get_time", {"x": 1})])
@pytest.mark.parametrize("tool_format", list(TOOL_FORMATS.values()), ids=lambda tool_format: tool_format.name)
def test_the_grammar_refuses_calls_that_were_not_offered(
    backend: tuple[Tokenizer, LLGuidance], tool_format: ToolFormat, wrong: tuple[str, dict[str, Any]]
) -> None:
    tokenizer, library = backend
    for choice, before in ((ToolChoice.REQUIRED, ""), (ToolChoice.AUTO, "So: ")):
        matcher = library.compile(tool_format.grammar([WEATHER, TIME], choice)).matcher()
        with pytest.raises(GrammarError):
            matcher.accept(written(tokenizer, before + tool_format.write(*wrong)))


@EXAMPLES
@given(tool_format=FORMATS, text=WORDS)
def test_without_a_call_the_text_is_the_content(tool_format: ToolFormat, text: str) -> None:
    text = text.replace(tool_format.begin, "")
    if tool_format.begin not in text:
        assert read(tool_format, [text]) == (text, [])


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nno JSON",
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "f", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "f", "args": {}}\n</tool_call>',
        '<tool_call>\n{"name": "' + "f" * 300,
        "<tool_call>\n<tool_call>\n",
        "one  <tool_call>\n two \n",
    ],
)
def test_what_only_looks_like_a_call_is_content(text: str) -> None:
    assert read(HERMES, [text]) == read(HERMES, list(text)) == (text, [])


def test_a_call_after_a_false_start_is_found() -> None:
    text = "<tool_call>\n" + HERMES.write("f", {})
    assert read(HERMES, list(text)) == ("<tool_call>", [("f", "{}", True)])


def test_space_that_only_sets_calls_apart_is_no_content() -> None:
    call = HERMES.write("f", {})
    assert read(HERMES, [f"\n{call}\n{call}\n"])[0] == ""
    assert read(HERMES, [f"Look:\n{call}\nDone. "])[0] == "Look:Done. "


def test_a_call_that_is_cut_off_says_so() -> None:
    text = HERMES.write("f", {"city": "Oslo"})
    arguments_end = text.index("}") + 1
    assert read(HERMES, [text[: arguments_end - 3]]) == ("", [("f", '{"city": "Osl', False)])
    assert read(HERMES, [text[:arguments_end]]) == ("", [("f", '{"city": "Oslo"}', True)])
    assert read(HERMES, [text[:10]]) == (text[:10], []), "nobody knows yet what is called"


def test_arguments_are_told_as_they_come() -> None:
    parser = ToolCallParser(HERMES)
    text = HERMES.write("f", {"city": "Oslo"})
    told = []
    for char in text:
        told += parser.push(char)
    assert sum(isinstance(event, CallArguments) for event in told) == len('{"city": "Oslo"}')
    assert isinstance(told[0], CallStart)
    assert isinstance(told[-1], CallEnd)


def test_mistrals_ids_have_the_length_that_its_templates_check() -> None:
    starts = [
        event
        for _ in range(3)
        for event in ToolCallParser(MISTRAL).push(MISTRAL.write("f", {}))
        if isinstance(event, CallStart)
    ]
    assert all(re.fullmatch("[A-Za-z0-9]{9}", start.id) for start in starts)
    assert len({start.id for start in starts}) == 3


def test_a_format_is_chosen_by_name_or_by_what_the_template_shows() -> None:
    assert choose_tool_format("mistral", "") is MISTRAL
    assert choose_tool_format(None, "... <tool_call>\n ...") is HERMES
    assert choose_tool_format(None, "{{ '[TOOL_CALLS] [' }}") is MISTRAL
    assert choose_tool_format(None, "<|start_header_id|> '\"parameters\": '") is LLAMA3_JSON
    assert choose_tool_format(None, "nothing") is HERMES
    with pytest.raises(RequestError, match="hermes, llama3_json, mistral"):
        choose_tool_format("xml", "")


def test_tools_that_cannot_be_offered_are_refused() -> None:
    with pytest.raises(RequestError, match="letters"):
        make_tool('a"b', None, None)
    with pytest.raises(RequestError, match="object"):
        make_tool("a", None, {"type": "string"})
    with pytest.raises(RequestError, match="more than once"):
        HERMES.grammar([make_tool("a", None, None)] * 2, ToolChoice.AUTO)


def test_a_tool_without_a_schema_takes_no_arguments() -> None:
    schema = dict(make_tool("a", None, None).parameters)
    jsonschema.validate({}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"x": 1}, schema)
