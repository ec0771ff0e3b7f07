"""Chat completions through OpenAI's own client, on a server of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import openai
import pytest

from lang.backends.openai import OpenAIBackend
from lang.capabilities import NotServed
from lang.choices import greedy_token_selection, unconditional_likelihood_normalized
from tests.lang.backends.conftest import HELLO, TEXT, chat_of, gen, select, text_of

MESSAGES = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Which city is the capital of Peru?"},
]
CITY = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "capital": {"type": "boolean"}},
    "required": ["size", "capital"],
    "additionalProperties": False,
}


def weather(where: bool) -> str:
    """Tomorrow's weather."""


@pytest.fixture(scope="module")
def backend(server_url: str) -> Iterator[OpenAIBackend]:
    with OpenAIBackend("tiny", base_url=server_url + "/v1", api_key="none", max_retries=0) as backend:
        yield backend


@pytest.fixture(scope="module")
def extended(server_url: str) -> Iterator[OpenAIBackend]:
    with OpenAIBackend(
        "tiny", base_url=server_url + "/v1", api_key="none", extensions="radixlab", stream=False
    ) as backend:
        yield backend


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server_url + "/v1", api_key="none") as client:
        yield client


def test_an_answer_is_what_the_client_gets(backend: OpenAIBackend, client: openai.OpenAI) -> None:
    expected = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=12, temperature=0)
    call = gen(backend, temperature=0)
    assert text_of(call) == expected.choices[0].message.content
    assert call.partial == call.text
    assert call.meta["finish_reason"] == "length"
    assert call.meta["prompt_tokens"] == expected.usage.prompt_tokens
    assert call.meta["cached_tokens"] == expected.usage.prompt_tokens - 1
    assert call.meta["completion_tokens"] == 12
    assert call.request == HELLO


def test_without_a_stream_the_answer_is_the_same(backend: OpenAIBackend, extended: OpenAIBackend) -> None:
    whole, streamed = gen(extended, temperature=0), gen(backend, temperature=0)
    assert (whole.text, whole.meta["finish_reason"]) == (streamed.text, streamed.meta["finish_reason"])


@pytest.mark.parametrize("streams", [True, False])
def test_samples_come_in_order_and_a_seed_repeats_them(
    backend: OpenAIBackend, extended: OpenAIBackend, streams: bool
) -> None:
    one = backend if streams else extended
    first, again = gen(one, n=3, seed=7), gen(one, n=3, seed=7)
    assert len(set(first.texts)) == 3
    assert first.texts == again.texts
    assert first.texts != gen(one, n=3, seed=8).texts
    assert first.meta["finish_reason"] == ["length"] * 3
    assert first.meta["completion_tokens"] == 36


def test_a_stop_string_cuts_the_text(backend: OpenAIBackend) -> None:
    whole = text_of(gen(backend, temperature=0))
    stopped = gen(backend, temperature=0, stop=whole[3:6])
    assert text_of(stopped) == whole[: whole.index(whole[3:6])]
    assert stopped.meta["finish_reason"] == "stop"


def test_penalties_are_sent(backend: OpenAIBackend) -> None:
    plain = text_of(gen(backend, temperature=0, max_tokens=48))
    assert text_of(gen(backend, temperature=0, max_tokens=48, frequency_penalty=2.0)) != plain
    assert text_of(gen(backend, temperature=0, max_tokens=48, presence_penalty=2.0)) != plain


@pytest.mark.parametrize("streams", [True, False])
def test_logprobs_are_of_each_token(backend: OpenAIBackend, extended: OpenAIBackend, streams: bool) -> None:
    call = gen(backend if streams else extended, temperature=0, logprobs=3)
    assert len(call.logprobs) == 12
    for token in call.logprobs:
        assert len(token.top) == 3
        assert token.logprob == max(logprob for _, _, logprob in token.top) <= 0
    assert gen(backend, temperature=0).logprobs is None


def test_a_schema_holds_the_output(backend: OpenAIBackend) -> None:
    call = gen(backend, json_schema=CITY, max_tokens=100, seed=1)
    jsonschema.validate(json.loads(text_of(call)), CITY)
    assert call.meta["finish_reason"] == "stop"


@pytest.mark.parametrize("streams", [True, False])
def test_calls_of_tools_come_as_data(backend: OpenAIBackend, extended: OpenAIBackend, streams: bool) -> None:
    call = gen(backend if streams else extended, tools=[weather], tool_choice="weather", max_tokens=200, temperature=0)
    assert text_of(call) == ""
    assert call.tool_calls
    for called in call.tool_calls:
        assert called.name == "weather"
        assert called.arguments in ({"where": True}, {"where": False})
        assert called.id
    assert gen(backend, tools=[weather], tool_choice="none").tool_calls == ()


def test_a_call_of_a_tool_that_is_cut_off_is_an_error(backend: OpenAIBackend) -> None:
    asked = {"tools": [weather], "tool_choice": "required", "temperature": 0}
    errors = {gen(backend, max_tokens=n, **asked).error for n in range(8, 40, 8)}
    assert any(error is not None and "no JSON object" in error for error in errors)


def test_tools_and_samples_dont_go_together(backend: OpenAIBackend) -> None:
    with pytest.raises(NotServed, match="fork"):
        gen(backend, tools=[weather], n=2)


@pytest.mark.parametrize("method", [None, greedy_token_selection])
def test_select_has_the_model_write_a_choice(backend: OpenAIBackend, extended: OpenAIBackend, method: object) -> None:
    choices = ["Lima", "Cusco", 'a "quoted" one']
    for one in (backend, extended):
        call = select(one, choices, **({} if method is None else {"method": method}))
        assert text_of(call) in choices
        assert call.meta["choices"] == tuple(choices)
        assert call.meta["choices_method"] == "constrained_decoding"
        assert "normalized_prompt_logprobs" not in call.meta


def test_a_rule_that_needs_logprobs_of_the_prompt_is_refused(backend: OpenAIBackend) -> None:
    with pytest.raises(NotServed, match="greedy_token_selection"):
        select(backend, ["Lima", "Cusco"], method=unconditional_likelihood_normalized)


def test_with_extensions_more_is_served(extended: OpenAIBackend) -> None:
    assert set(text_of(gen(extended, regex="[ab]{3}"))) <= {"a", "b"}
    assert gen(extended, top_k=1, seed=1).text == gen(extended, temperature=0).text
    assert gen(extended, min_p=1.0, seed=1).text == gen(extended, temperature=0).text
    long = gen(extended, temperature=0, min_tokens=40, ignore_eos=True, max_tokens=40, stop_token_ids=[511])
    assert long.meta["completion_tokens"] <= 40


def test_what_isnt_a_chat_is_refused(backend: OpenAIBackend) -> None:
    with pytest.raises(NotServed, match=r"inside user\(\.\.\.\)"):
        gen(backend, TEXT)
    with pytest.raises(NotServed, match="a new message"):
        gen(backend, chat_of(("user", "Which city?"), "The city is "))


def test_it_lists_what_it_lacks_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        OpenAIBackend("gpt-5.2")
