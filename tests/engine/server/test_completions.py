"""/v1/completions over a live server: the engine's own answers, whole and streamed, whatever is asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from engine.engine import Engine
from engine.request import Request, SamplingParams, TokenLogprob
from engine.server.openai_models import CompletionResponse
from engine.server.sse import as_json
from engine.server.token_logprobs import TextLogprobs, TokenTexts, chat_logprobs
from engine.tokenizer import builtin_tokenizer
from tests.engine.server.conftest import LiveServer

PROMPT = "The radix tree keeps what was computed, and"
Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def http(live_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server.base_url, timeout=60) as client:
        yield client


@pytest.fixture
def complete(http: httpx.Client) -> Call:
    """Greedy, unless something else is asked for. What comes back is what the OpenAPI document promises."""

    def call(prompt: Any = PROMPT, **fields: Any) -> dict[str, Any]:
        asked = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 12, **fields}
        response = http.post("/v1/completions", json=asked)
        assert response.status_code == 200, response.text
        CompletionResponse.model_validate(response.json(), strict=True, extra="forbid")
        return response.json()

    return call


@pytest.fixture
def stream(http: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    def call(prompt: Any = PROMPT, **fields: Any) -> list[dict[str, Any]]:
        asked = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": 12, "stream": True, **fields}
        response = http.post("/v1/completions", json=asked)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        chunks = [json.loads(event) for event in events]
        for chunk in chunks:
            CompletionResponse.model_validate(chunk, strict=True, extra="forbid")
        return chunks

    return call


def generated(engine: Engine, prompt: Any = PROMPT, **params: Any) -> list[Request]:
    (requests,) = engine.generate([prompt], SamplingParams(**{"temperature": 0, "max_tokens": 12, **params}))
    assert all(request.error is None for request in requests)
    return requests


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


# ---- prompts


def test_greedy_output_is_the_engines(complete: Call, reference_engine: Engine) -> None:
    (request,) = generated(reference_engine)
    answer = complete()
    assert texts(answer) == [request.text]
    assert answer["choices"][0]["finish_reason"] == "length"


def test_token_ids_are_a_prompt_like_their_text(complete: Call) -> None:
    ids = builtin_tokenizer().encode(PROMPT)
    assert texts(complete(ids)) == texts(complete())


def test_prompts_of_a_list_are_answered_in_order(complete: Call) -> None:
    prompts = [PROMPT, "Another", "A third one, longer than the others"]
    alone = [texts(complete(prompt, n=2, seed=5, temperature=1))[:2] for prompt in prompts]
    assert texts(complete(prompts, n=2, seed=5, temperature=1)) == [text for pair in alone for text in pair]
    ids = [builtin_tokenizer().encode(prompt) for prompt in prompts]
    answer = complete(ids, n=2, seed=5, temperature=1)
    assert texts(answer) == [text for pair in alone for text in pair]
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))


def test_one_bad_prompt_of_a_list_refuses_all_of_them(http: httpx.Client, live_server: LiveServer) -> None:
    body = {"model": "tiny", "prompt": [[1, 2], [1, 600], [3]], "max_tokens": 8000}
    response = http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "600" in response.json()["error"]["message"]
    until_idle(live_server)


def test_max_tokens_is_16_and_temperature_1_unless_given(complete: Call, reference_engine: Engine) -> None:
    answer = complete(max_tokens=None, temperature=None, seed=3)
    (request,) = generated(reference_engine, seed=3, max_tokens=16, temperature=1)
    assert texts(answer) == [request.text]
    assert answer["usage"]["completion_tokens"] == 16


# ---- how tokens are chosen


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.7, "seed": 1},
        {"temperature": 1, "seed": 2**63 - 1, "n": 3},
        {"temperature": 1, "seed": 1, "top_p": 0.3},
        {"temperature": 1, "seed": 1, "top_k": 3},
        {"temperature": 1, "seed": 1, "min_p": 0.9},
        {"presence_penalty": 2},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.7},
        {"ignore_eos": True, "min_tokens": 4},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_sampling_is_the_engines(complete: Call, reference_engine: Engine, fields: dict[str, Any]) -> None:
    expected = [request.text for request in generated(reference_engine, **fields)]
    assert texts(complete(**fields)) == expected


def test_a_negative_seed_is_a_seed(complete: Call) -> None:
    assert texts(complete(temperature=1, seed=-1)) == texts(complete(temperature=1, seed=2**63 - 1))


@pytest.mark.parametrize("off", [-1, 0, None])
def test_top_k_can_be_off(complete: Call, off: int | None) -> None:
    assert texts(complete(temperature=1, seed=4, top_k=off)) == texts(complete(temperature=1, seed=4))


# ---- how an output ends


def test_a_stop_string_ends_the_text_before_it(complete: Call, stream: Any) -> None:
    whole = texts(complete(temperature=1, seed=11, max_tokens=40))[0]
    stop = whole[10:12]
    for given in (stop, [stop, "never seen"]):
        answer = complete(temperature=1, seed=11, max_tokens=40, stop=given)
        assert texts(answer) == [whole[: whole.index(stop)]]
        assert answer["choices"][0]["finish_reason"] == "stop"
        chunks = stream(temperature=1, seed=11, max_tokens=40, stop=given)
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole[: whole.index(stop)]


def test_a_stop_token_ends_the_output(complete: Call, reference_engine: Engine) -> None:
    (request,) = generated(reference_engine, temperature=1, seed=11)
    stop = request.output[5]
    answer = complete(temperature=1, seed=11, stop_token_ids=[stop])
    n = request.output.index(stop) + 1
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == n
    assert texts(answer) == [generated(reference_engine, temperature=1, seed=11, stop_token_ids=(stop,))[0].text]


# ---- what an output must match


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"regex": "[ab]{3}-[0-9]{2}"}, lambda text: text[:3].strip("ab") == "" and text[3] == "-" and len(text) == 6),
        ({"choice": ["north", "south"]}, lambda text: text in ("north", "south")),
        ({"ebnf": 'root ::= "x" ("y" | "z") "!"'}, lambda text: text in ("xy!", "xz!")),
        ({"lark": 'start: "x" ("y" | "z") "!"'}, lambda text: text in ("xy!", "xz!")),
    ],
    ids=["regex", "choice", "ebnf", "lark"],
)
def test_output_follows_a_grammar(
    complete: Call, stream: Any, fields: dict[str, Any], matches: Callable[[str], bool]
) -> None:
    answer = complete(**fields, temperature=1, seed=6, max_tokens=64)
    (text,) = texts(answer)
    assert matches(text)
    assert answer["choices"][0]["finish_reason"] == "stop"
    chunks = stream(**fields, temperature=1, seed=6, max_tokens=64)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text


@pytest.mark.parametrize("as_text", [False, True])
def test_output_follows_a_json_schema(complete: Call, as_text: bool) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Oslo", "Bergen"]}, "warm": {"type": "boolean"}},
        "required": ["city", "warm"],
        "additionalProperties": False,
    }
    answer = complete(json_schema=json.dumps(schema) if as_text else schema, max_tokens=200, temperature=1, seed=2)
    assert answer["choices"][0]["finish_reason"] == "stop"
    jsonschema.validate(json.loads(texts(answer)[0]), schema)
    assert answer["usage"]["completion_tokens_details"]["forced_tokens"] > 0


# ---- echo and log-probabilities


def test_echo_begins_the_text_with_the_prompt(complete: Call) -> None:
    (alone,) = texts(complete())
    assert texts(complete(echo=True)) == [PROMPT + alone]
    assert texts(complete(builtin_tokenizer().encode(PROMPT), echo=True)) == [PROMPT + alone]


def test_echo_without_new_tokens_scores_the_prompt(complete: Call, reference_engine: Engine) -> None:
    answer = complete(echo=True, logprobs=3, max_tokens=0)
    ids = builtin_tokenizer().encode(PROMPT)
    scores = reference_engine.score(ids[:1], [ids[1:]])[0]
    logprobs = answer["choices"][0]["logprobs"]
    assert texts(answer) == [PROMPT]
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["token_logprobs"][1:] == pytest.approx([score.logprob for score in scores], abs=1e-4)
    assert logprobs["top_logprobs"][0] is None
    assert all(3 <= len(top) <= 4 for top in logprobs["top_logprobs"][1:])
    assert answer["usage"]["completion_tokens"] == 0


def test_a_prompt_of_one_token_has_nothing_to_score(complete: Call) -> None:
    logprobs = complete([75], echo=True, logprobs=0, max_tokens=1)["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"][0] is None
    assert len(logprobs["tokens"]) == 2


def test_each_token_stands_where_its_offset_says(complete: Call) -> None:
    choice = complete(echo=True, logprobs=1, temperature=1, seed=9, max_tokens=30)["choices"][0]
    logprobs, text = choice["logprobs"], choice["text"]
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        if not token.startswith(("bytes:", "<s>")):
            assert text[offset:].startswith(token) or "\ufffd" in text[offset - 1 : offset + 1]
    alone = complete(logprobs=1, temperature=1, seed=9, max_tokens=30)["choices"][0]
    assert logprobs["tokens"][-30:] == alone["logprobs"]["tokens"]
    assert [at + len(PROMPT) for at in alone["logprobs"]["text_offset"]] == logprobs["text_offset"][-30:]


def test_parts_of_a_character_are_told_by_their_bytes(complete: Call) -> None:
    choice = complete("\u20ac", echo=True, logprobs=0, max_tokens=0)["choices"][0]
    assert choice["text"] == "\u20ac"
    assert choice["logprobs"]["tokens"] == ["<s>", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]


def test_an_impossible_token_has_a_finite_log_probability() -> None:
    tokenizer = TokenTexts(builtin_tokenizer())
    entries = [TokenLogprob(75, -math.inf, ((76, -0.5), (2, -math.inf)))]
    completion = TextLogprobs(tokenizer, ()).take(entries)
    assert completion["token_logprobs"] == [-9999.0]
    assert completion["top_logprobs"] == [{"I": -0.5, "</s>": -9999.0, "H": -9999.0}]
    as_json({"completion": completion, "chat": chat_logprobs(tokenizer, entries)})  # refuses what isn't finite


# ---- streams and usage


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3, "temperature": 1, "seed": 8},
        {"echo": True},
        {"echo": True, "logprobs": 2, "n": 2, "temperature": 1, "seed": 8},
        {"logprobs": 0, "prompt": [PROMPT, "Another"]},
        {"max_tokens": 0, "echo": True, "logprobs": 0},
        {"prompt": PROMPT * 20, "max_tokens": 2, "echo": True, "logprobs": 20},
    ],
    ids=["plain", "samples", "echo", "echo with logprobs", "prompts", "scored", "much scored"],
)
def test_a_stream_joined_is_the_whole_answer(complete: Call, stream: Any, fields: dict[str, Any]) -> None:
    answer = complete(**fields)
    joined: dict[int, dict[str, Any]] = {}
    for chunk in stream(**fields):
        (piece,) = chunk["choices"]
        choice = joined.setdefault(piece["index"], {"index": piece["index"], "text": "", "logprobs": None})
        assert choice.get("finish_reason") is None, "nothing follows the end"
        choice["text"] += piece["text"]
        choice["finish_reason"] = piece["finish_reason"]
        if piece["logprobs"] is not None and choice["logprobs"] is None:
            choice["logprobs"] = piece["logprobs"]
        elif piece["logprobs"] is not None:
            for name, values in piece["logprobs"].items():
                choice["logprobs"][name] += values
    assert [without_logprobs(joined[i]) for i in sorted(joined)] == [without_logprobs(c) for c in answer["choices"]]
    for i, choice in enumerate(answer["choices"]):
        assert (choice["logprobs"] is None) == (joined[i]["logprobs"] is None)
        if choice["logprobs"] is not None:
            assert joined[i]["logprobs"]["tokens"] == choice["logprobs"]["tokens"]
            assert joined[i]["logprobs"]["text_offset"] == choice["logprobs"]["text_offset"]


def without_logprobs(choice: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choice.items() if name != "logprobs"}


def test_the_last_chunk_says_what_was_used_if_asked(stream: Any) -> None:
    *chunks, last = stream(stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 12
    assert all("usage" not in chunk for chunk in stream(stream_options={"include_usage": False}))


def test_usage_tells_what_the_cache_had(complete: Call) -> None:
    prompt = "A prompt that no other test has: " + "counted once. " * 3
    n = len(builtin_tokenizer().encode(prompt))
    complete(prompt)
    usage = complete(prompt, n=3)["usage"]
    assert usage["prompt_tokens"] == n
    assert usage["prompt_tokens_details"] == {"cached_tokens": n - 1}
    assert usage["completion_tokens"] == 36
    assert usage["total_tokens"] == n + 36


# ---- clients that hang up


def until_idle(server: LiveServer) -> None:
    """Waits until no request is under way; fails when one never ends."""
    engine = server.state.service.engine
    for _ in range(1000):
        if not engine.has_work:
            return
        time.sleep(0.01)
    pytest.fail("a request is still under way")


@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_ends_when_its_client_hangs_up(live_server: LiveServer, streamed: bool) -> None:
    body = {"model": "tiny", "prompt": [PROMPT, "Another"], "max_tokens": 3500, "ignore_eos": True, "stream": streamed}
    with httpx.Client(base_url=live_server.base_url) as client:
        if streamed:
            with client.stream("POST", "/v1/completions", json=body, timeout=60) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post("/v1/completions", json=body, timeout=httpx.Timeout(60, read=0.3))
    until_idle(live_server)
