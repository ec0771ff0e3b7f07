"""/v1/chat/completions over a live server: the template's prompt, the engine's answer, calls of tools, streams."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest
from PIL import Image

from engine.config import EngineConfig
from engine.engine import Engine
from engine.request import SamplingParams
from engine.server.chat_models import ChatResponse
from tests.engine.server.conftest import LiveServer, serve

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a radix tree?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY, "strict": True}},
    {"type": "function", "function": {"name": "clock"}},
]
Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def http(live_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server.base_url, timeout=60) as client:
        yield client


def post(http: httpx.Client, fields: dict[str, Any], **more: Any) -> httpx.Response:
    asked = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_completion_tokens": 12, **fields, **more}
    return http.post("/v1/chat/completions", json=asked)


@pytest.fixture
def chat(http: httpx.Client) -> Call:
    """Greedy, unless something else is asked for. What comes back is what the OpenAPI document promises."""

    def call(**fields: Any) -> dict[str, Any]:
        response = post(http, fields)
        assert response.status_code == 200, response.text
        ChatResponse.model_validate(response.json(), strict=True, extra="forbid")
        return response.json()

    return call


@pytest.fixture
def refused(http: httpx.Client) -> Call:
    def call(**fields: Any) -> dict[str, Any]:
        response = post(http, fields)
        assert response.status_code == 400, response.text
        return response.json()["error"]

    return call


@pytest.fixture
def stream(http: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    def call(**fields: Any) -> list[dict[str, Any]]:
        response = post(http, fields, stream=True)
        assert response.status_code == 200, response.text
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        return chunks

    return call


def joined(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages of a stream, checked for the order of their parts: the role, what was said and called, the end."""
    messages: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message = messages.get(choice["index"])
            if message is None:
                assert delta == {"role": "assistant", "content": "", "refusal": None}
                message = messages[choice["index"]] = {"content": "", "calls": [], "tokens": [], "end": None}
                delta = {}
            assert message["end"] is None, "nothing follows the end"
            message["content"] += delta.get("content", "")
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(message["calls"]):
                    assert call["id"].startswith("call_")
                    message["calls"].append([call["function"]["name"], ""])
                message["calls"][call["index"]][1] += call["function"]["arguments"]
            if choice["logprobs"] is not None:
                message["tokens"] += [entry["token"] for entry in choice["logprobs"]["content"]]
            if choice["finish_reason"] is not None:
                assert delta == {}
                message["end"] = choice["finish_reason"]
    return [messages[i] for i in sorted(messages)]


def told(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The same of a whole answer."""
    found = []
    for choice in answer["choices"]:
        calls = [[c["function"]["name"], c["function"]["arguments"]] for c in choice["message"].get("tool_calls", ())]
        tokens = [entry["token"] for entry in (choice["logprobs"] or {"content": ()})["content"]]
        content = choice["message"]["content"] or ""
        found.append({"content": content, "calls": calls, "tokens": tokens, "end": choice["finish_reason"]})
    return found


# ---- from messages to an answer


def test_greedy_output_is_the_engines_for_the_templates_prompt(
    chat: Call, live_server: LiveServer, reference_engine: Engine
) -> None:
    prompt = live_server.state.chat.encode(MESSAGES)
    ((request,),) = reference_engine.generate([prompt], SamplingParams(temperature=0, max_tokens=12))
    answer = chat()
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": request.text, "refusal": None}
    assert choice["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == len(prompt)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "Be brief."}, MESSAGES[1]],
        [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, MESSAGES[1]],
        [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": "What is a radix tree?"}], "name": "me"}],
    ],
    ids=["developer", "parts of a system message", "parts of a user message"],
)
def test_the_same_said_otherwise_is_answered_the_same(chat: Call, messages: list[dict[str, Any]]) -> None:
    assert told(chat(messages=messages)) == told(chat())


def test_the_older_name_of_max_completion_tokens(chat: Call) -> None:
    assert told(chat(max_completion_tokens=None, max_tokens=12)) == told(chat())
    assert told(chat(max_tokens=12)) == told(chat())


def test_without_a_limit_an_answer_may_fill_the_context() -> None:
    with serve(engine=EngineConfig(model="tiny", device="cpu", pool_tokens=256, max_context=64)) as server:
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "ignore_eos": True}
        usage = httpx.post(f"{server.base_url}/v1/chat/completions", json=body, timeout=60).json()["usage"]
    assert usage["total_tokens"] == 64


def test_an_answer_can_be_sent_back_as_it_came(chat: Call) -> None:
    message = chat()["choices"][0]["message"]
    more = {"annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    chat(messages=[*MESSAGES, {**message, **more}, {"role": "user", "content": "Go on"}])


# ---- log-probabilities


def test_log_probabilities_hold_the_exact_bytes(chat: Call) -> None:
    choice = chat(logprobs=True, top_logprobs=2, temperature=1, seed=3, max_completion_tokens=40)["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 40
    exact = b"".join(bytes(entry["bytes"]) for entry in entries)
    assert exact.decode(errors="replace") == choice["message"]["content"]
    for entry in entries:
        assert len(entry["top_logprobs"]) == 2
        best = entry["top_logprobs"][0]
        assert entry["logprob"] <= best["logprob"]
        assert entry["bytes"] == [] or entry["token"] == bytes(entry["bytes"]).decode(errors="replace")


def test_log_probabilities_alone_name_no_others(chat: Call) -> None:
    entries = chat(logprobs=True)["choices"][0]["logprobs"]["content"]
    assert len(entries) == 12
    assert all(entry["top_logprobs"] == [] for entry in entries)


# ---- formats


@pytest.mark.parametrize("strict", [True, False, None])
def test_a_response_format_is_followed(chat: Call, strict: bool | None) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": CITY, "strict": strict}}
    (message,) = told(chat(response_format=wanted, temperature=1, seed=1, max_completion_tokens=400))
    assert message["end"] == "stop"
    jsonschema.validate(json.loads(message["content"]), CITY)


def test_json_mode_gives_an_object(chat: Call) -> None:
    wanted = {"response_format": {"type": "json_object"}, "temperature": 1, "max_completion_tokens": 60}
    answers = [told(chat(**wanted, seed=seed))[0] for seed in range(4)]
    finished = [json.loads(answer["content"]) for answer in answers if answer["end"] == "stop"]
    assert all(isinstance(value, dict) for value in finished)
    assert all(answer["content"].lstrip().startswith("{") for answer in answers)


def test_a_format_of_text_asks_for_nothing(chat: Call) -> None:
    assert told(chat(response_format={"type": "text"})) == told(chat())


def test_a_schema_that_cannot_be_read_is_refused_by_its_field(refused: Call) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    assert refused(response_format=wanted)["param"] == "response_format"
    missing = {"type": "json_schema", "json_schema": {"name": "x"}}
    assert refused(response_format=missing)["param"] == "response_format.json_schema.schema"


# ---- tools


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_call_that_is_required_comes_and_fits_its_schema(chat: Call, stream: Any, seed: int) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "seed": seed}
    fields |= {"temperature": 1, "max_completion_tokens": 400}
    answer = chat(**fields)
    (message,) = told(answer)
    ((name, arguments),) = message["calls"]
    assert answer["choices"][0]["message"]["content"] is None
    assert message["end"] == "tool_calls"
    assert name in ("weather", "clock")
    if name == "weather":
        jsonschema.validate(json.loads(arguments), CITY)
    else:
        assert json.loads(arguments) == {}
    assert joined(stream(**fields)) == [message]


@pytest.mark.parametrize("name", ["weather", "clock"])
def test_a_call_of_a_named_tool_is_of_that_tool(chat: Call, name: str) -> None:
    choice = {"type": "function", "function": {"name": name}}
    answer = chat(tools=TOOLS, tool_choice=choice, temperature=1, seed=5, max_completion_tokens=400)
    assert [call[0] for call in told(answer)[0]["calls"]] == [name]


def test_a_tool_that_may_not_be_called_is_not(chat: Call) -> None:
    (message,) = told(chat(tools=TOOLS, tool_choice="none", temperature=1, seed=5, max_completion_tokens=60))
    assert message["calls"] == []
    assert message["end"] == "length"


def test_what_is_said_without_a_call_is_content(chat: Call, stream: Any) -> None:
    fields = {"tools": TOOLS, "tool_choice": "auto", "temperature": 1, "seed": 5, "max_completion_tokens": 30}
    (message,) = told(chat(**fields))
    assert len(message["content"]) > 0
    assert message["calls"] == []
    assert joined(stream(**fields)) == [message]
    assert told(chat(**{**fields, "tool_choice": None})) == [message]


def test_calls_that_were_cut_off_end_by_length(chat: Call) -> None:
    (message,) = told(chat(tools=TOOLS, tool_choice="required", max_completion_tokens=3))
    assert message["end"] == "length"


def test_results_of_earlier_calls_are_part_of_the_prompt(chat: Call, refused: Call) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    asked = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}
    with_result = chat(messages=[*asked, result], tools=TOOLS)["usage"]["prompt_tokens"]
    assert with_result > chat(messages=asked, tools=TOOLS)["usage"]["prompt_tokens"]
    error = refused(messages=[*asked, {**result, "tool_call_id": "call_2"}])
    assert error["param"] == "messages.3.tool_call_id"
    call["function"]["arguments"] = "Oslo"
    assert refused(messages=[*asked, result])["param"] == "messages.2.tool_calls.0.function.arguments"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]}, "tools.0"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": TOOLS, "regex": "a"}, "regex"),
    ],
)
def test_tools_that_make_no_sense_are_refused_by_name(refused: Call, fields: dict[str, Any], param: str) -> None:
    assert refused(**fields)["param"].startswith(param)


# ---- images


def image_url(data: bytes) -> list[dict[str, Any]]:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url, "detail": "low"}}]}]


def test_a_model_of_text_refuses_images_and_says_what_is_wrong_with_broken_ones(refused: Call) -> None:
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    error = refused(messages=image_url(png.getvalue()))
    assert error["param"] == "messages.0.content.0.image_url"
    assert error["code"] == "unsupported_parameter"
    assert "takes no images" in error["message"]
    assert refused(messages=image_url(b"no image"))["code"] == "invalid_image"


# ---- streams


@pytest.mark.parametrize(
    "fields",
    [{}, {"n": 3, "temperature": 1, "seed": 8}, {"logprobs": True, "stop": ["e"], "temperature": 1, "seed": 4}],
    ids=str,
)
def test_a_stream_joined_is_the_whole_answer(chat: Call, stream: Any, fields: dict[str, Any]) -> None:
    assert joined(stream(**fields)) == told(chat(**fields))


def test_the_last_chunk_says_what_was_used_if_asked(chat: Call, stream: Any) -> None:
    usage = [chat(n=2)["usage"] for _ in range(2)][1]
    *chunks, last = stream(stream_options={"include_usage": True}, n=2)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"] == usage
