"""What isn't served, isn't known or makes no sense is a 400 that names it; what asks for nothing is accepted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from engine.server.refused import CHAT, COMPLETIONS, NATIVE
from tests.engine.server.conftest import LiveServer

MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "Hello", "max_tokens": 1},
    "/v1/chat/completions": {"model": "tiny", "messages": MESSAGES, "max_tokens": 1},
    "/generate": {"text": "Hello", "sampling_params": {"max_new_tokens": 1}},
}
TABLES = {"/v1/completions": COMPLETIONS, "/v1/chat/completions": CHAT, "/generate": NATIVE}


@pytest.fixture(scope="module")
def http(live_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server.base_url, timeout=60) as client:
        yield client


def refusal(http: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    body = json.dumps({**BODIES[path], **fields})  # httpx would refuse half a character itself
    response = http.post(path, content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    return response.json()["error"]


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, table in TABLES.items() for name in table])
def test_a_parameter_that_is_not_served_is_refused_by_name(http: httpx.Client, path: str, name: str) -> None:
    error = refusal(http, path, **{name: {"some": "value"}})
    assert error["param"] == name
    assert error["code"] == "unsupported_parameter"
    assert error["type"] == "invalid_request_error"
    assert name in error["message"]


@pytest.mark.parametrize("path", TABLES)
def test_values_that_ask_for_nothing_are_accepted(http: httpx.Client, path: str) -> None:
    response = http.post(path, json={**BODIES[path], **dict.fromkeys(TABLES[path])})
    assert response.status_code == 200, response.text
    for name, entry in TABLES[path].items():
        for neutral in entry.neutral:
            response = http.post(path, json={**BODIES[path], name: neutral})
            assert response.status_code == 200, response.text


def test_a_number_is_no_boolean_that_asks_for_nothing(http: httpx.Client) -> None:
    assert refusal(http, "/v1/chat/completions", store=0)["param"] == "store"


@pytest.mark.parametrize("path", TABLES)
def test_an_unknown_field_is_named_with_the_nearest_that_is_known(http: httpx.Client, path: str) -> None:
    error = refusal(http, path, prioritty=1)
    assert error["param"] == "prioritty"
    assert error["code"] == "unknown_parameter"
    assert "did you mean priority" in error["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "1"),
        ("temperature", True),
        ("temperature", -0.1),
        ("temperature", []),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", 10**30),
        ("min_p", 2),
        ("n", 0),
        ("n", True),
        ("n", "1"),
        ("n", 10**30),
        ("n", 129),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_tokens", 10**400),
        ("min_tokens", 2),
        ("seed", 2**63),
        ("seed", 0.5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0),
        ("stop", ""),
        ("stop", ["a", 1]),
        ("stop", {"a": 1}),
        ("stop", "\ud800"),
        ("stop", ["x"] * 17),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [True]),
        ("stop_token_ids", ["1"]),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("user", 1),
        ("priority", "high"),
        ("timeout", 0),
        ("timeout", "1"),
        ("regex", 1),
        ("regex", "("),
        ("regex", ""),
        ("json_schema", "{"),
        ("json_schema", {"type": "nonsense"}),
        ("choice", []),
        ("choice", "abc"),
        ("lark", "start: ("),
        ("ebnf", "root ::= ("),
        ("model", 1),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(http: httpx.Client, path: str, name: str, value: Any) -> None:
    error = refusal(http, path, **{name: value})
    assert str(error["param"]).startswith(name)


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": None}, "prompt"),
        ("/v1/completions", {"prompt": [1, "a"]}, "prompt"),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt"),
        ("/v1/completions", {"prompt": [[1], 2]}, "prompt"),
        ("/v1/completions", {"prompt": [1, -1]}, "prompt"),
        ("/v1/completions", {"prompt": [True]}, "prompt"),
        ("/v1/completions", {"prompt": [10**30]}, "prompt"),
        ("/v1/completions", {"prompt": ["a"] * 257}, "prompt"),
        ("/v1/completions", {"best_of": 2}, "best_of"),
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"logprobs": True}, "logprobs"),
        ("/v1/completions", {"stream": True, "stream_options": {"more": 1}}, "stream_options.more"),
        ("/v1/completions", {"regex": "a", "choice": ["a"]}, "choice"),
        ("/v1/completions", {"regex": "a", "ignore_eos": True}, "ignore_eos"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": "Hello"}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, "messages.0"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages.0.x"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages.0"),
        ("/v1/chat/completions", {"top_logprobs": 1}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": 1}, "logprobs"),
        ("/v1/chat/completions", {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ("/v1/chat/completions", {"tool_choice": "required"}, "tool_choice"),
        ("/v1/chat/completions", {"tools": [{"type": "web_search"}]}, "tools.0"),
        ("/v1/chat/completions", {"response_format": {"type": "xml"}}, "response_format"),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        ("/generate", {"input_ids": [1]}, "input_ids"),
        ("/generate", {"text": None}, "text"),
        ("/generate", {"text": []}, "text"),
        ("/generate", {"text": None, "input_ids": [[1], "a"]}, "input_ids"),
        ("/generate", {"sampling_params": {"max_tokens": 1}}, "max_tokens"),
        ("/generate", {"sampling_params": [{}, {}]}, "sampling_params"),
        ("/generate", {"text": ["a", "b"], "sampling_params": [{"n": 1}, {"n": 2}]}, "sampling_params"),
        ("/generate", {"top_logprobs_num": 1}, "top_logprobs_num"),
        ("/generate", {"return_logprob": True, "logprob_start_len": 99}, "logprob_start_len"),
    ],
)
def test_fields_that_do_not_fit_are_refused_by_name(
    http: httpx.Client, path: str, fields: dict[str, Any], named: str
) -> None:
    error = refusal(http, path, **fields)
    assert named in f"{error['param']} {error['message']}"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", '{"model": "tiny", "prompt": "a", "temperature": %s}'),
        ("/v1/completions", '{"model": "tiny", "prompt": [%s]}'),
        ("/v1/completions", '{"model": "tiny", "prompt": "a", "json_schema": {"const": %s}}'),
        ("/v1/chat/completions", '{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "timeout": %s}'),
        ("/generate", '{"text": "a", "sampling_params": {"top_p": %s}}'),
    ],
)
def test_numbers_that_are_not_finite_are_refused(http: httpx.Client, path: str, body: str, number: str) -> None:
    response = http.post(path, content=body % number, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text


@pytest.mark.parametrize(
    "body",
    [
        '{"model": "tiny", "prompt": "a", "\\ud800": 1}',
        '{"model": "tiny", "prompt": "\\ud800"}',
        '{"model": "tiny", "prompt": "a", "user": "\\ud800"}',
        '{"model": "tiny", "prompt": "a", "json_schema": ' + '{"not":' * 5000 + "true" + "}" * 5001,
        '{"model": "tiny", "prompt": ' + "[" * 5000 + "]" * 5000 + "}",
        "[]",
        "null",
        "",
    ],
    ids=["half a name", "half a character", "half a user", "deep schema", "deep prompt", "list", "null", "nothing"],
)
def test_a_body_that_cannot_be_read_is_a_bad_request(http: httpx.Client, body: str) -> None:
    response = http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_an_unknown_model_is_not_found(http: httpx.Client, path: str) -> None:
    response = http.post(path, json={**BODIES[path], "model": "gpt-4o"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert error["code"] == "model_not_found"
    assert error["param"] == "model"
    assert "'tiny'" in error["message"]


@pytest.mark.parametrize("path", BODIES)
def test_a_prompt_that_is_too_long_says_so_before_a_stream_begins(http: httpx.Client, path: str) -> None:
    long = "word " * 20_000
    prompt = {
        "/v1/completions": {"prompt": long},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": long}]},
        "/generate": {"text": long},
    }[path]
    for stream in (True, False):
        response = http.post(path, json={**BODIES[path], **prompt, "stream": stream})
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"
