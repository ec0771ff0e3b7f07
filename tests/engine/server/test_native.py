"""/generate, /tokenize and /detokenize over a live server: token ids in and out, and scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from engine.engine import Engine
from engine.request import SamplingParams
from engine.server.native_models import GenerateResponse
from engine.tokenizer import builtin_tokenizer
from tests.engine.server.conftest import LiveServer

PROMPT = "The radix tree keeps what was computed, and"
IDS = builtin_tokenizer().encode(PROMPT)
GREEDY = {"temperature": 0, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def http(live_server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server.base_url, timeout=60) as client:
        yield client


@pytest.fixture
def generate(http: httpx.Client) -> Callable[..., Any]:
    def call(**fields: Any) -> Any:
        response = http.post("/generate", json={"sampling_params": GREEDY, **fields})
        assert response.status_code == 200, response.text
        outputs = response.json()
        for output in outputs if isinstance(outputs, list) else [outputs]:
            GenerateResponse.model_validate(output, extra="forbid")
        return outputs

    return call


@pytest.fixture
def stream(http: httpx.Client) -> Callable[..., list[dict[str, Any]]]:
    def call(**fields: Any) -> list[dict[str, Any]]:
        response = http.post("/generate", json={"sampling_params": GREEDY, "stream": True, **fields})
        assert response.status_code == 200, response.text
        events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]

    return call


def test_greedy_output_is_the_engines(generate: Any, reference_engine: Engine) -> None:
    ((request,),) = reference_engine.generate([IDS], SamplingParams(temperature=0, max_tokens=12))
    for prompt in ({"text": PROMPT}, {"input_ids": IDS}):
        output = generate(**prompt)
        assert output["text"] == request.text
        assert output["output_ids"] == request.output
        assert output["meta_info"]["finish_reason"] == {"type": "length", "matched": None}
        assert output["meta_info"]["prompt_tokens"] == len(IDS)
        assert output["meta_info"]["completion_tokens"] == 12
        assert output["meta_info"]["e2e_latency"] > 0


def test_without_sampling_params_the_engines_defaults_hold(http: httpx.Client) -> None:
    output = http.post("/generate", json={"text": PROMPT, "sampling_params": {"ignore_eos": True}}).json()
    assert output["meta_info"]["completion_tokens"] == SamplingParams().max_tokens
    assert http.post("/generate", json={"text": PROMPT}).json()["meta_info"]["completion_tokens"] >= 1


def test_prompts_of_a_list_have_parameters_of_their_own(generate: Any) -> None:
    each = [GREEDY, {"temperature": 1, "seed": 4, "max_new_tokens": 5}]
    outputs = generate(text=[PROMPT, "Another"], sampling_params=each)
    alone = [generate(text=PROMPT, sampling_params=each[0]), generate(text="Another", sampling_params=each[1])]
    assert [output["output_ids"] for output in outputs] == [output["output_ids"] for output in alone]
    assert len({output["meta_info"]["id"] for output in outputs}) == 2


def test_a_list_of_one_is_answered_with_a_list(generate: Any) -> None:
    assert [output["text"] for output in generate(input_ids=[IDS])] == [generate(input_ids=IDS)["text"]]


def test_samples_follow_one_another(generate: Any) -> None:
    params = {"temperature": 1, "seed": 4, "max_new_tokens": 5, "n": 2}
    outputs = generate(text=[PROMPT, "Another"], sampling_params=params)
    alone = [*generate(text=PROMPT, sampling_params=params), *generate(text="Another", sampling_params=params)]
    assert [output["output_ids"] for output in outputs] == [output["output_ids"] for output in alone]


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_prompt_is_scored_from_a_position_on(generate: Any, reference_engine: Engine, start: int) -> None:
    scoring = {"sampling_params": {"max_new_tokens": 0}, "return_logprob": True, "logprob_start_len": start}
    meta = generate(input_ids=IDS, **scoring, top_logprobs_num=2)["meta_info"]
    found = meta["input_token_logprobs"]
    first = max(start, 1)
    scores = reference_engine.score(IDS[:first], [IDS[first:]])[0]
    if start == 0:
        assert found[0] == [None, IDS[0], "<s>"]
        assert meta["input_top_logprobs"][0] is None
        found = found[1:]
    assert [token for _, token, _ in found] == IDS[first:]
    assert [logprob for logprob, _, _ in found] == pytest.approx([score.logprob for score in scores], abs=1e-4)
    assert "".join(text for _, _, text in found) == builtin_tokenizer().decode(IDS[first:])
    assert all(len(top) == 2 for top in meta["input_top_logprobs"] if top is not None)
    assert meta["output_token_logprobs"] == []


def test_log_probabilities_of_the_output(generate: Any, reference_engine: Engine) -> None:
    ((request,),) = reference_engine.generate([IDS], SamplingParams(temperature=0, max_tokens=12, logprobs=2))
    meta = generate(input_ids=IDS, return_logprob=True, top_logprobs_num=2)["meta_info"]
    expected = [entry.logprob for entry in request.logprobs]
    assert [logprob for logprob, _, _ in meta["output_token_logprobs"]] == pytest.approx(expected, abs=1e-4)
    assert [[token for _, token, _ in top] for top in meta["output_top_logprobs"]] == [
        [token for token, _ in entry.top] for entry in request.logprobs
    ]
    assert "input_token_logprobs" not in meta


def test_a_prompt_of_one_token_has_no_score(generate: Any) -> None:
    meta = generate(input_ids=[75], return_logprob=True, logprob_start_len=0)["meta_info"]
    assert meta["input_token_logprobs"] == [[None, 75, "H"]]


def test_a_grammar_is_followed(generate: Any) -> None:
    outputs = generate(
        text=[PROMPT, PROMPT],
        sampling_params=[{"regex": "[0-9]{4}", "seed": 1}, {"choice": ["left", "right"], "seed": 1}],
    )
    assert outputs[0]["text"].isdigit()
    assert outputs[1]["text"] in ("left", "right")
    assert outputs[1]["meta_info"]["forced_tokens"] > 0
    assert outputs[0]["meta_info"]["finish_reason"]["type"] == "stop"


def test_what_stopped_an_output_is_told(generate: Any) -> None:
    whole = generate(text=PROMPT, sampling_params={"seed": 11, "max_new_tokens": 40})
    token, stop = whole["output_ids"][7], whole["text"][8:10]
    by_token = generate(text=PROMPT, sampling_params={"seed": 11, "max_new_tokens": 40, "stop_token_ids": [token]})
    assert by_token["meta_info"]["finish_reason"] == {"type": "stop", "matched": token}
    by_text = generate(text=PROMPT, sampling_params={"seed": 11, "max_new_tokens": 40, "stop": stop})
    assert by_text["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}
    assert by_text["text"] == whole["text"][: whole["text"].index(stop)]


@pytest.mark.parametrize(
    "fields",
    [
        {"text": PROMPT},
        {"text": [PROMPT, "Another"], "sampling_params": {"n": 2, "seed": 3, "max_new_tokens": 9}},
        {"input_ids": IDS, "return_logprob": True, "logprob_start_len": 0, "top_logprobs_num": 1},
    ],
    ids=["one", "several", "scored"],
)
def test_a_stream_joined_is_the_whole_answer(generate: Any, stream: Any, fields: dict[str, Any]) -> None:
    whole = generate(**fields)
    whole = whole if isinstance(whole, list) else [whole]
    pieces: dict[int, list[dict[str, Any]]] = {}
    for event in stream(**fields):
        pieces.setdefault(event["index"], []).append(event)
    assert sorted(pieces) == list(range(len(whole)))
    for i, output in enumerate(whole):
        assert "".join(piece["text"] for piece in pieces[i]) == output["text"]
        assert [token for piece in pieces[i] for token in piece["output_ids"]] == output["output_ids"]
        last = pieces[i][-1]["meta_info"]
        assert last["finish_reason"] == output["meta_info"]["finish_reason"]
        assert last["completion_tokens"] == output["meta_info"]["completion_tokens"]
        for name in ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs"):
            found = [entry for piece in pieces[i] for entry in piece["meta_info"].get(name, ())]
            assert len(found) == len(output["meta_info"].get(name, ()))


def test_the_policies_know_whose_request_it_is(generate: Any, live_server: LiveServer) -> None:
    seen: list[Any] = []
    on_finish = live_server.state.service.engine.on_finish
    on_finish.append(seen.append)
    tags = {"user": "me", "conversation": "c", "program": "p", "agent": "a", "priority": 7}
    try:
        generate(text=PROMPT, **tags)
    finally:
        on_finish.remove(seen.append)
    (request,) = seen
    assert (request.client, request.conversation, request.program, request.agent) == ("me", "c", "p", "a")
    assert request.priority == 7


# ---- text and tokens


def test_text_becomes_tokens_and_comes_back(http: httpx.Client) -> None:
    found = http.post("/tokenize", json={"text": PROMPT}).json()
    assert found == {"tokens": IDS, "count": len(IDS), "max_model_len": 8192}
    bare = http.post("/tokenize", json={"text": PROMPT, "add_special_tokens": False}).json()["tokens"]
    assert bare == IDS[1:]
    assert http.post("/detokenize", json={"tokens": bare}).json() == {"text": PROMPT}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"text": ""}


def test_messages_become_the_templates_tokens(http: httpx.Client, live_server: LiveServer) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    found = http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert found == live_server.state.chat.encode(messages)
    tools = [{"type": "function", "function": {"name": "clock"}}]
    assert len(http.post("/tokenize", json={"messages": messages, "tools": tools}).json()["tokens"]) > len(found)


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/tokenize", {}, "text and messages"),
        ("/tokenize", {"text": "a", "messages": [{"role": "user", "content": "a"}]}, "text and messages"),
        ("/tokenize", {"text": "a", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ("/tokenize", {"text": "\ud800"}, "half a character"),
        ("/tokenize", {"text": 1}, "text"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [512]}, "512"),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]"),
        ("/detokenize", {"tokens": "abc"}, "list of token ids"),
    ],
)
def test_what_cannot_be_turned_into_the_other_is_refused(
    http: httpx.Client, path: str, body: dict[str, Any], named: str
) -> None:
    response = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert named in f"{error['param']}: {error['message']}"
