"""/v1/messages against Anthropic's own client."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import jsonschema
import pytest
from PIL import Image

from engine.config import EngineConfig
from tests.engine.server.conftest import LiveServer, serve

WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Oslo"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
TIME = {"name": "get_time", "input_schema": {"type": "object", "properties": {}, "additionalProperties": False}}
HELLO = [{"role": "user", "content": "Hello there"}]


@pytest.fixture(scope="module")
def client(live_server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=live_server.base_url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    """Greedy unless told otherwise; the client's own signature has no temperature."""
    body = {"model": "tiny", "max_tokens": 8, "messages": HELLO, "extra_body": {"temperature": 0}, **fields}
    return client.messages.create(**body)


def test_an_answer_has_the_clients_shape_and_counts_its_tokens(client: anthropic.Anthropic) -> None:
    message = ask(client, system="Be brief.")
    assert message.id.startswith("msg_")
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny")
    assert [block.type for block in message.content] == ["text"]
    assert (message.stop_reason, message.stop_sequence) == ("max_tokens", None)
    assert message.usage.output_tokens == 8
    counted = client.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief.")
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == counted.input_tokens


def test_the_cache_is_used_without_being_asked(client: anthropic.Anthropic) -> None:
    messages = [{"role": "user", "content": "Say the same thing twice, please. " * 4}]
    ask(client, messages=messages)
    usage = ask(client, messages=messages).usage
    assert usage.cache_read_input_tokens > usage.input_tokens > 0
    assert usage.cache_creation_input_tokens == 0


def test_a_stream_gives_the_same_message_as_no_stream(client: anthropic.Anthropic) -> None:
    whole = ask(client)
    with client.messages.stream(model="tiny", max_tokens=8, messages=HELLO, extra_body={"temperature": 0}) as stream:
        text = "".join(stream.text_stream)
        message = stream.get_final_message()
    assert text == whole.content[0].text == message.content[0].text
    assert (message.stop_reason, message.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == (
        whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    )


def test_the_async_client_streams_too(live_server: LiveServer) -> None:
    async def run() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=live_server.base_url, api_key="none", max_retries=0) as client:
            fields: Any = {
                "model": "tiny",
                "max_tokens": 6,
                "messages": HELLO,
                "extra_body": {"temperature": 0},
            }
            whole = await client.messages.create(**fields)
            async with client.messages.stream(**fields) as stream:
                streamed = await stream.get_final_message()
        return whole.content[0].text, streamed.content[0].text

    whole, streamed = asyncio.run(run())
    assert whole == streamed != ""


def events(live_server: LiveServer, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = httpx.post(f"{live_server.base_url}/v1/messages", json={**body, "stream": True}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = []
    for event in answer.text.strip().split("\n\n"):
        name, data = event.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def test_events_come_in_the_order_that_the_protocol_says(live_server: LiveServer) -> None:
    found = events(live_server, {"model": "tiny", "max_tokens": 5, "messages": HELLO, "temperature": 0})
    kinds = [event["type"] for event in found]
    assert kinds[:3] == ["message_start", "ping", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[3:-3]) == {"content_block_delta"}
    assert found[0]["message"]["content"] == []
    assert found[0]["message"]["stop_reason"] is None
    assert found[-2]["usage"]["output_tokens"] == 5


def test_a_tool_that_must_be_called_is_called_with_arguments_that_its_schema_accepts(
    client: anthropic.Anthropic,
) -> None:
    message = ask(
        client,
        max_tokens=200,
        tools=[WEATHER, TIME],
        tool_choice={"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
        extra_body={"temperature": 1.0},
    )
    assert message.stop_reason == "tool_use"
    (block,) = message.content
    assert (block.type, block.name) == ("tool_use", "get_weather")
    assert block.id.startswith("toolu_")
    jsonschema.validate(block.input, WEATHER["input_schema"])


def test_where_tools_may_be_called_the_model_may_also_just_talk(client: anthropic.Anthropic) -> None:
    message = ask(client, tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in message.content] == ["text"]
    assert message.stop_reason == "max_tokens"


def test_a_call_that_is_cut_off_tells_what_is_certain(client: anthropic.Anthropic) -> None:
    """Forced tokens spell `<tool_call>...{"city": "` and then few tokens are left."""
    counted = 0
    for max_tokens in range(20, 120, 4):
        message = ask(client, max_tokens=max_tokens, tools=[WEATHER], tool_choice={"type": "any"})
        if message.stop_reason != "max_tokens":
            break
        if message.content and message.content[0].type == "tool_use":
            counted += 1
            assert set(message.content[0].input) <= {"city", "days"}
    assert counted


def test_a_streamed_call_is_the_same_call(client: anthropic.Anthropic) -> None:
    fields: Any = {
        "model": "tiny",
        "max_tokens": 200,
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "extra_body": {"temperature": 0},
    }
    (whole,) = client.messages.create(**fields).content
    with client.messages.stream(**fields) as stream:
        message = stream.get_final_message()
    (block,) = message.content
    assert (block.name, block.input, message.stop_reason) == (whole.name, whole.input, "tool_use")


def test_a_call_and_its_result_can_be_sent_back(client: anthropic.Anthropic) -> None:
    tools: Any = {"tools": [WEATHER], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}}
    called = ask(client, max_tokens=200, **tools)
    (block,) = called.content
    result = {"type": "tool_result", "tool_use_id": block.id, "content": [{"type": "text", "text": "Sun."}]}
    history = [*HELLO, {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
    answer = ask(client, messages=history, tools=[WEATHER], tool_choice={"type": "none"})
    assert answer.stop_reason == "max_tokens"
    assert [part.type for part in answer.content] == ["text"]


def test_an_answer_goes_on_from_the_assistants_own_last_message(
    client: anthropic.Anthropic, live_server: LiveServer
) -> None:
    begun = [*HELLO, {"role": "assistant", "content": "Well, the"}]
    counted = client.messages.count_tokens(model="tiny", messages=begun).input_tokens
    chat, tokenizer = live_server.state.chat, live_server.state.service.tokenizer
    prompt = chat.encode([*HELLO, {"role": "assistant", "content": "Well, the"}], continue_last=True)
    assert tokenizer.decode(prompt).endswith("### assistant\nWell, the")
    assert counted == len(prompt)
    assert ask(client, messages=begun).usage.output_tokens == 8


def test_an_output_may_be_held_to_a_schema(client: anthropic.Anthropic) -> None:
    schema = WEATHER["input_schema"]
    message = ask(client, max_tokens=200, output_config={"format": {"type": "json_schema", "schema": schema}})
    jsonschema.validate(json.loads(message.content[0].text), schema)
    assert message.stop_reason == "end_turn"


def test_a_stop_sequence_is_named(client: anthropic.Anthropic) -> None:
    text = ask(client, max_tokens=16).content[0].text
    stop = text[3:6]
    message = ask(client, max_tokens=16, stop_sequences=[stop])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in message.content) == text[: text.index(stop)]


def test_marks_for_a_cache_are_accepted_and_change_nothing(client: anthropic.Anthropic) -> None:
    marked = [{"type": "text", "text": "Hello there", "cache_control": {"type": "ephemeral"}}]
    plain = client.messages.count_tokens(model="tiny", messages=HELLO)
    assert client.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": marked}]) == plain


def test_an_answer_that_fills_the_context_says_so() -> None:
    with serve(engine=EngineConfig(model="tiny", device="cpu", pool_tokens=128)) as small:
        body = {"model": "tiny", "max_tokens": 100_000, "messages": HELLO, "temperature": 0}
        answer = httpx.post(f"{small.base_url}/v1/messages", json=body, timeout=60).json()
    assert answer["stop_reason"] == "model_context_window_exceeded"
    assert answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"] == 128


def refused(live_server: LiveServer, **fields: Any) -> tuple[int, str, str]:
    body = {"model": "tiny", "max_tokens": 8, "messages": HELLO, **fields}
    answer = httpx.post(f"{live_server.base_url}/v1/messages", json=body)
    data = answer.json()
    assert data["type"] == "error", data
    return answer.status_code, data["error"]["type"], data["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"container": "c"}, "container"),
        ({"max_token": 3}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages.0.content.0"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "the tool a"),
        ({"tools": [TIME, TIME]}, "get_time"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"output_config": {"effort": "high"}}, "output_config.effort"),
        (
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}]},
            "messages.0.content.0.tool_use_id",
        ),
    ],
)
def test_what_is_not_served_is_refused_by_name(live_server: LiveServer, fields: dict[str, Any], named: str) -> None:
    status, kind, message = refused(live_server, **fields)
    assert (status, kind) == (400, "invalid_request_error")
    assert named in message


def test_an_unknown_model_is_not_found(live_server: LiveServer) -> None:
    for path, more in (("", {"max_tokens": 8}), ("/count_tokens", {})):
        body = {"model": "other", "messages": HELLO, **more}
        answer = httpx.post(f"{live_server.base_url}/v1/messages{path}", json=body)
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


def test_the_client_raises_its_own_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="other"):
        ask(client, model="other")
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        ask(client, max_tokens=0)
    with pytest.raises(anthropic.BadRequestError, match=r"grammar|schema"):
        ask(client, tools=[{"name": "a", "input_schema": {"type": "object", "properties": {"x": {"type": "no"}}}}])


def png() -> str:
    file = io.BytesIO()
    Image.new("RGB", (2, 2)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("data", "says"),
    [(png(), "takes no images"), (base64.b64encode(b"no image").decode(), "it is none"), ("!!", "base64")],
)
def test_an_image_is_looked_at_before_it_is_refused(live_server: LiveServer, data: str, says: str) -> None:
    source = {"type": "base64", "media_type": "image/png", "data": data}
    messages = [{"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "image", "source": source}]}]
    status, kind, message = refused(live_server, messages=messages)
    assert (status, kind) == (400, "invalid_request_error")
    assert says in message
    assert "messages.0.content.1" in message
