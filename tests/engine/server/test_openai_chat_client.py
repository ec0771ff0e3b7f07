"""OpenAI's own client against /v1/chat/completions: parsed models, tools, streams through its helpers, its errors."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

import jsonschema
import openai
import pydantic
import pytest

from tests.engine.server.conftest import LiveServer

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "You are brief."},
    {"role": "user", "content": "Which city is the capital of Peru?"},
]


class Size(StrEnum):
    SMALL = "small"
    LARGE = "large"


class City(pydantic.BaseModel):
    size: Size
    capital: bool
    twins: list[Size] = pydantic.Field(max_length=2)


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tomorrow's weather.",
        "parameters": {
            "type": "object",
            "properties": {"where": {"enum": ["Lima", "Cusco"]}, "celsius": {"type": "boolean"}},
            "required": ["where", "celsius"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "clock",
        "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
    },
}


@pytest.fixture(scope="module")
def client(live_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live_server.base_url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def chat(client: openai.OpenAI) -> Callable[..., Any]:
    def call(**options: Any) -> Any:
        asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 12, **options}
        return client.chat.completions.create(**asked)

    return call


def arguments(call: Any) -> Any:
    """Of a call of a tool, checked against the schema that it was offered with."""
    schema = {tool["function"]["name"]: tool["function"]["parameters"] for tool in (WEATHER, CLOCK)}[call.function.name]
    found = json.loads(call.function.arguments)
    jsonschema.validate(found, schema)
    return found


# ---- answers


def test_n_answers_with_usage(chat: Callable[..., Any]) -> None:
    answer = chat(n=3, temperature=1.0, seed=11)
    again = chat(n=3, temperature=1.0, seed=11)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = [choice.message.content for choice in answer.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert answer.usage.completion_tokens == 36
    assert again.usage.prompt_tokens_details.cached_tokens == again.usage.prompt_tokens - 1


def test_logprobs_name_the_likeliest(chat: Callable[..., Any]) -> None:
    choice = chat(logprobs=True, top_logprobs=4).choices[0]
    entries = choice.logprobs.content
    assert len(entries) == 12
    for entry in entries:
        assert len(entry.top_logprobs) == 4
        assert entry.top_logprobs[0].bytes == entry.bytes  # greedy
        assert entry.top_logprobs[0].logprob == entry.logprob <= 0
    assert b"".join(bytes(entry.bytes) for entry in entries).decode(errors="replace") == choice.message.content


def test_a_stop_string_cuts_the_answer(chat: Callable[..., Any]) -> None:
    whole = chat().choices[0].message.content
    stop = whole[4:7]
    choice = chat(stop=stop).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("stop", whole[: whole.index(stop)])


def test_a_stream_adds_up_to_the_whole(chat: Callable[..., Any]) -> None:
    *chunks, last = chat(stream=True, stream_options={"include_usage": True})
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == chat().choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert (last.choices, last.usage.completion_tokens) == ([], 12)


def test_the_clients_stream_helper_gives_the_whole(client: openai.OpenAI, chat: Callable[..., Any]) -> None:
    options: dict[str, Any] = {"temperature": 1.0, "seed": 5}
    stop = chat(**options).choices[0].message.content[-3:]  # the helper takes an answer cut by length for an error
    options |= {"stop": [stop], "max_tokens": 12}
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **options) as stream:
        said = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert said
    assert said == final.choices[0].message.content == chat(**options).choices[0].message.content


# ---- output in a form


def test_json_mode_gives_one_object(chat: Callable[..., Any]) -> None:
    for seed in range(6):
        form = {"type": "json_object"}
        choice = chat(response_format=form, temperature=1.0, seed=seed, max_tokens=200).choices[0]
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
            return
    pytest.fail("no seed has ended its object within 200 tokens")


@pytest.mark.parametrize("seed", range(4))
def test_parse_gives_the_pydantic_model(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, response_format=City, temperature=1.0, seed=seed, max_tokens=300
    )
    assert answer.choices[0].finish_reason == "stop"
    city = answer.choices[0].message.parsed
    assert isinstance(city, City)
    assert len(city.twins) <= 2
    assert answer.usage is not None
    # `{"size":"` and the like are not the model's to choose
    assert answer.usage.completion_tokens_details.forced_tokens > 0


def test_a_streamed_parse_gives_the_same_model(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "response_format": City, "max_tokens": 300}
    whole = client.chat.completions.parse(**options, temperature=0.0)
    with client.chat.completions.stream(**options, temperature=0.0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == whole.choices[0].message.parsed
    assert isinstance(final.choices[0].message.parsed, City)


# ---- tools


def test_a_required_call_has_arguments_that_fit(chat: Callable[..., Any]) -> None:
    for seed in range(4):
        choice = chat(
            tools=[WEATHER, CLOCK], tool_choice="required", temperature=1.0, seed=seed, max_tokens=300
        ).choices[0]
        assert choice.finish_reason in ("tool_calls", "length")
        assert choice.message.tool_calls
        if choice.finish_reason == "tool_calls":
            for call in choice.message.tool_calls:
                arguments(call)


def test_a_named_tool_is_the_one_that_is_called(chat: Callable[..., Any]) -> None:
    choice = chat(
        tools=[WEATHER, CLOCK],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        parallel_tool_calls=False,
        max_tokens=100,
    ).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert arguments(call).keys() == {"where", "celsius"}


def test_with_auto_the_model_may_talk(chat: Callable[..., Any]) -> None:
    message = chat(tools=[WEATHER], tool_choice="auto").choices[0].message
    assert message.content or message.tool_calls
    assert chat(tools=[WEATHER]).choices[0].message == message


def test_with_none_no_tool_is_called(chat: Callable[..., Any]) -> None:
    assert chat(tools=[WEATHER], tool_choice="none", max_tokens=40).choices[0].message.tool_calls is None


def test_a_call_streamed_through_the_helper_is_the_same_call(client: openai.OpenAI, chat: Callable[..., Any]) -> None:
    options: dict[str, Any] = {
        "tools": [WEATHER, CLOCK],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "temperature": 0.0,
        "max_tokens": 100,
    }
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, **options) as stream:
        deltas = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        final = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls or []
    (whole,) = chat(**options).choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == (whole.function.name, whole.function.arguments)
    assert "".join(deltas) == whole.function.arguments


def test_a_conversation_goes_on_after_a_call(chat: Callable[..., Any]) -> None:
    first = chat(tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, max_tokens=100).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Sunny."}
    answer = chat(messages=[*MESSAGES, first.model_dump(), result], tools=[WEATHER], tool_choice="none")
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.prompt_tokens_details.cached_tokens > 0  # the conversation so far


def test_the_async_client_is_served(live_server: LiveServer, chat: Callable[..., Any]) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=live_server.base_url + "/v1", api_key="none", max_retries=0) as client:
            asked: dict[str, Any] = {"model": "tiny", "messages": MESSAGES, "temperature": 0.0, "max_tokens": 12}
            answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(6)))
            return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask()) == [chat().choices[0].message.content] * 6


# ---- errors


def image(content: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(content).decode()
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages.0", "role"),
        ({"messages": image(b"no image")}, "messages.0", "image"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages.0", ""),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"functions": [{"name": "f"}]}, "functions", "not supported"),
        ({"response_format": {"type": "yaml"}}, "response_format", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
            "response_format",
            "thing",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cant_be_served_is_a_bad_request_that_names_it(
    chat: Callable[..., Any], options: dict[str, Any], param: str, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(**options)
    assert (caught.value.param or "").startswith(param)
    assert says in caught.value.message


def test_an_unknown_model_is_not_found(chat: Callable[..., Any]) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny"):
        chat(model="gpt-4")
