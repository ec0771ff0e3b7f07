"""DSPy programs on our engine (a tiny model with random weights: grammars make its answers readable)."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import socket
import threading
from typing import Annotated, Any, Literal

import dspy
import pytest
from dspy import lm15
from pydantic import BaseModel, Field

from engine.chat_template import load_chat_template
from engine.config import EngineConfig
from engine.make import make_engine
from engine.policies.base import AdmissionPolicy, Reject
from engine.request import Request, RequestError, SamplingParams
from lang.backends.dspy_engine import DSPyEngine

MODEL = "radixlab/tiny"
REVIEWS = [f"Review {i}: the soup was {'cold' if i % 3 else 'good'} and the room was loud." for i in range(16)]


class Judge(dspy.Signature):
    """Say how the guest liked it."""

    review: str = dspy.InputField()
    verdict: Literal["liked", "disliked", "unclear"] = dspy.OutputField()


class Reason(BaseModel):
    text: Annotated[str, Field(max_length=12)]


class JudgeBriefly(dspy.Signature):
    """Say how the guest liked it."""

    review: str = dspy.InputField()
    why: Reason = dspy.OutputField()
    verdict: Literal["liked", "disliked", "unclear"] = dspy.OutputField()


def engine_of(**settings: Any):
    return make_engine(EngineConfig(**{"model": "tiny", "pool_tokens": 16384, **settings}))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def connect(*_: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


@pytest.fixture(scope="module")
def engine():
    return engine_of()


@pytest.fixture
def served(engine):
    engine.reset_metrics()
    with DSPyEngine(engine) as dspy_engine:
        yield dspy_engine
    assert not engine.has_work


@pytest.fixture
def lm(served):
    lm = dspy.LM(
        MODEL, engine=served, async_engine=served.asynchronous, cache=False, temperature=0, max_tokens=64, num_retries=0
    )
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        yield lm


def ask(text: str = "Tell me of the bear.", /, *, system=None, tools=(), messages=(), **config: Any) -> lm15.Request:
    config = {"max_tokens": 8, "temperature": 0, **config}
    said = messages or (lm15.Message.user(text),)
    return lm15.Request(MODEL, said, system=system, tools=tools, config=lm15.Config(**config))


# ---- programs


def test_a_choice_is_answered_with_one_of_its_values(lm):
    prediction = dspy.Predict(Judge)(review=REVIEWS[0])
    assert prediction.verdict in ("liked", "disliked", "unclear")
    assert prediction == dspy.Predict(Judge)(review=REVIEWS[0]), "greedy"


def test_chain_of_thought(lm):
    program = dspy.ChainOfThought(Judge, rationale_field_type=Literal["soup matters", "noise matters"])
    prediction = program(review=REVIEWS[0])
    assert prediction.reasoning in ("soup matters", "noise matters")
    assert prediction.verdict in ("liked", "disliked", "unclear")


def test_threads_of_an_evaluation_are_one_batch_and_answer_what_one_thread_does(engine, lm):
    program = dspy.Predict(JudgeBriefly)
    alone = [program(review=review) for review in REVIEWS]
    assert engine.metrics.peak_running == 1
    examples = [
        dspy.Example(review=review, alone=prediction).with_inputs("review")
        for review, prediction in zip(REVIEWS, alone)
    ]

    def same(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
        return example.alone.toDict() == prediction.toDict()

    evaluate = dspy.Evaluate(devset=examples, metric=same, num_threads=8, display_progress=False)
    assert evaluate(program).score == 100
    assert engine.metrics.peak_running > 1


def test_candidates_share_the_prompt(lm):
    candidates = dspy.Predict(Judge, n=3, temperature=1.0)(review=REVIEWS[1]).completions
    assert len(candidates) == 3
    used = lm.history[-1]["usage"]
    assert used["prompt_tokens_details"]["cached_tokens"] > used["prompt_tokens"] / 2


def test_without_dspys_cache_every_call_reaches_the_engine(served, monkeypatch):
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
    asked = []
    monkeypatch.setattr(
        served, "complete", lambda request: asked.append(request) or DSPyEngine.complete(served, request)
    )
    for cache, reached in ((False, 2), (True, 1)):
        lm = dspy.LM(MODEL, engine=served, cache=cache, temperature=0, max_tokens=4)
        assert lm("Hello") == lm("Hello")
        assert len(asked) == reached
        asked.clear()


def test_native_tool_calls(lm):
    def weather(city: Literal["Rome", "Oslo"]) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    class Help(dspy.Signature):
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        program = dspy.Predict(Help, tool_choice="required", parallel_tool_calls=False)
        (call,) = program(question="Is it wet?", tools=[dspy.Tool(weather)]).calls.tool_calls
    assert call.name == "weather"
    assert "Rome" in str(call.args) or "Oslo" in str(call.args)


def test_programs_on_an_event_loop_are_one_batch(engine, lm):
    program = dspy.Predict(JudgeBriefly)
    alone = [program(review=review) for review in REVIEWS[:6]]

    async def together() -> list[dspy.Prediction]:
        return await asyncio.gather(*(program.acall(review=review) for review in REVIEWS[:6]))

    assert asyncio.run(together()) == alone
    assert engine.metrics.peak_running > 1


def test_a_program_streams(lm):
    program = dspy.streamify(dspy.Predict(JudgeBriefly))

    async def listen() -> tuple[list[str], dspy.Prediction]:
        pieces, prediction = [], None
        async for value in program(review=REVIEWS[0]):
            if isinstance(value, dspy.Prediction):
                prediction = value
            else:
                pieces.append(value.choices[0].delta.content or "")
        return pieces, prediction

    pieces, prediction = asyncio.run(listen())
    assert len(pieces) > 2
    answer = json.loads("".join(pieces))
    assert (answer["why"]["text"], answer["verdict"]) == (prediction.why.text, prediction.verdict)


def test_copies_of_a_program_share_the_engine(served, lm):
    assert copy.deepcopy(lm).engine is served
    assert lm.copy(temperature=1.0).engine is served


# ---- requests


def test_it_answers_what_the_engine_answers(engine):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    prompt = load_chat_template(engine.tokenizer).encode(messages)
    [[direct]] = engine.generate([prompt], SamplingParams(max_tokens=12, temperature=0))
    with DSPyEngine(engine) as served:
        response = served.complete(ask("Hello", system="Be brief.", max_tokens=12))
    assert response.text == direct.text
    assert (response.finish_reason, response.model) == (direct.finish_reason.value, MODEL)
    usage = response.usage
    assert (usage.input_tokens, usage.output_tokens) == (len(prompt), direct.output_tokens)
    assert usage.cache_read_tokens == len(prompt) - 1, "the direct request left its KV"


def test_a_stream_joined_is_the_whole_answer(served):
    request = ask(max_tokens=12, logprobs=2)
    whole = served.complete(request)
    events = list(served.stream(request))
    assert [events[0].type, events[-1].type] == ["start", "end"]
    assert len(events) > 3
    assert "".join(event.delta.text for event in events[1:-1]) == whole.text
    streamed = lm15.materialize_response(iter(events), request)
    assert [entry.token_id for entry in streamed.logprobs] == [entry.token_id for entry in whole.logprobs]
    assert len(whole.logprobs) == whole.usage.output_tokens
    assert all(len(entry.top) == 2 and entry.top[0].logprob >= entry.logprob - 1e-5 for entry in whole.logprobs)


def test_sampling_fields_reach_the_engine(served):
    text = served.complete(ask(max_tokens=12)).text
    stop = text[3:5]
    assert served.complete(ask(max_tokens=12, stop=(stop,))).text == text[: text.index(stop)]
    hot = {"temperature": 1.5, "max_tokens": 12}
    assert served.complete(ask(**hot, seed=7)).text == served.complete(ask(**hot, seed=7)).text
    assert len({served.complete(ask(**hot, seed=seed)).text for seed in range(4)}) > 1
    assert served.complete(ask(**hot, top_k=1)).text == text, "the likeliest token alone"
    assert served.complete(ask(**hot, top_p=1e-6)).text == text
    assert served.complete(ask(max_tokens=12, frequency_penalty=2.0, presence_penalty=2.0)).text != text


def test_extensions_reach_the_engine(served):
    only = served.complete(ask(extensions={"choice": ["a bear"], "priority": 2, "namespace": "tenant"}))
    assert only.text == "a bear"
    again = served.complete(ask(extensions={"choice": ["a bear"], "namespace": "another"}))
    assert again.usage.cache_read_tokens == 0, "nothing is shared between namespaces"


def test_tags_reach_the_policies(engine, served, monkeypatch):
    seen: list[Request] = []
    monkeypatch.setattr(engine, "on_finish", [*engine.on_finish, seen.append])
    served.complete(ask(user_id="ann", extensions={"conversation": "c1", "priority": 3}))
    assert [(request.client, request.conversation, request.priority) for request in seen] == [("ann", "c1", 3)]


def test_json_mode_and_schemas(served):
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    answer = served.complete(ask(max_tokens=64, response_format={"type": "json_schema", "schema": schema}))
    assert answer.data["n"] in (1, 2)
    assert served.complete(ask(max_tokens=2, response_format={"type": "json_object"})).text.startswith("{")


def test_messages_reach_the_template(engine, served):
    said = (
        lm15.Message.developer("Be kind."),
        lm15.Message.user(["One.", lm15.DataPart({"two": 2})]),
        lm15.Message.assistant([lm15.TextPart("Three."), lm15.ToolCallPart("c1", "look", {"at": "it"})]),
        lm15.Message.tool("c1", "seen"),
        lm15.Message.user("Four."),
    )
    asked = served._read(ask(messages=said, system="Begin."))
    text = engine.tokenizer.decode(asked.prompt)
    places = [
        text.index(part) for part in ("Begin.", "Be kind.", 'One.\n{"two": 2}', "Three.", "look", "seen", "Four.")
    ]
    assert places == sorted(places)


def test_tools_are_called_as_the_choice_says(served):
    tools = tuple(
        lm15.FunctionTool(name, "Goes there.", {"type": "object", "properties": {}, "additionalProperties": False})
        for name in ("left", "right")
    )
    choice = lm15.ToolChoice("required", allowed=("right",), parallel=False)
    answer = served.complete(ask(tools=tools, max_tokens=64, tool_choice=choice, logprobs=0))
    assert [(call.name, call.input) for call in answer.tool_calls] == [("right", {})]
    assert answer.finish_reason == "tool_call"
    assert len(answer.logprobs) == answer.usage.output_tokens
    cut = served.complete(ask(tools=tools, max_tokens=2, tool_choice=choice))
    assert cut.finish_reason == "length"
    assert not served.complete(ask(tools=tools, tool_choice=lm15.ToolChoice("none"))).tool_calls


def test_probabilities_that_may_be_missing_are_told_as_dropped(served):
    (told,) = served.complete(ask(probabilities="if_available")).adaptations
    assert (told.field, told.action) == ("config.probabilities", "dropped")


# ---- what isn't served

REFUSED = {
    "reasoning": (lm15.Reasoning("low"), "config.reasoning"),
    "service_tier": ("priority", "config.service_tier"),
    "store": (True, "config.store"),
    "probabilities": ("required", "config.probabilities"),
    "cache": (lm15.CacheConfig(mode="off"), "config.cache.mode"),
}
SERVED = (
    *("max_tokens", "temperature", "top_p", "top_k", "stop", "seed", "frequency_penalty", "presence_penalty"),
    *("response_format", "tool_choice", "user_id", "logprobs", "extensions"),
)


def test_every_field_of_a_request_is_served_or_refused():
    assert {field.name for field in dataclasses.fields(lm15.Config)} == {*SERVED, *REFUSED}
    assert {field.name for field in dataclasses.fields(lm15.Request)} == {
        "model",
        "messages",
        "system",
        "tools",
        "config",
    }


@pytest.mark.parametrize("name", REFUSED)
def test_a_field_that_is_not_served_is_refused_by_name(served, name):
    value, feature = REFUSED[name]
    with pytest.raises(lm15.UnsupportedFeatureError) as error:
        served.complete(ask(**{name: value}))
    assert error.value.feature == feature


@pytest.mark.parametrize(
    "cache", [lm15.CacheConfig(retention="long"), lm15.CacheConfig(key="k"), lm15.CacheConfig(resource="r")]
)
def test_prefixes_are_cached_by_what_they_say_alone(served, cache):
    with pytest.raises(lm15.UnsupportedFeatureError, match=r"config\.cache\."):
        served.complete(ask(cache=cache))
    assert served.complete(ask(cache=lm15.CacheConfig(prefix="history"))).text


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (ask(extensions={"logit_bias": {"5": 1}}), "logit_bias"),
        (ask(extensions={"min_pp": 0.1}), "did you mean min_p"),
        (ask(tools=(lm15.BuiltinTool("web_search"),)), r"tools\[0\]"),
        (ask(messages=(lm15.Message.user(lm15.ImagePart(url="http://x/y.png")),)), r"messages\[0\]\.parts\[0\]"),
        (ask(messages=(lm15.Message.assistant(lm15.ThinkingPart("hm")),)), "thinking"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(served, request_, why):
    with pytest.raises(lm15.UnsupportedFeatureError, match=why):
        served.complete(request_)


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (ask(extensions={"min_p": 7}), "min_p"),
        (ask(extensions={"min_p": "much"}), "min_p"),
        (ask(top_p=0.0), "top_p"),
        (ask(extensions={"regex": "("}), "unclosed"),
        (ask(extensions={"regex": "a"}, response_format={"type": "json_object"}), "one of them"),
        (ask(tool_choice=lm15.ToolChoice("required")), "there are no tools"),
        (ask(tools=(lm15.FunctionTool("f"),), response_format={"type": "json_object"}), "ChatAdapter"),
        (ask(tools=(lm15.FunctionTool("a b"),)), r"tools\[0\]"),
        (ask(messages=(lm15.Message.tool("c9", "seen"),)), "c9"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(served, request_, why):
    with pytest.raises(lm15.InvalidRequestError, match=why):
        served.complete(request_)


def test_another_model_is_not_served(served):
    with pytest.raises(dspy.LMUnsupportedModelError, match="tiny"):
        dspy.LM("radixlab/large", engine=served, cache=False)("Hello")


def test_a_prompt_that_is_too_long(lm):
    with pytest.raises(dspy.ContextWindowExceededError):
        lm("bear " * 20_000)


def test_a_connection_is_not_the_engines(served):
    with pytest.raises(ValueError, match="api_base"):
        dspy.LM(MODEL, engine=served, api_base="http://localhost")


# ---- life


def test_a_call_has_its_time(engine):
    with DSPyEngine(engine, timeout=1e-6) as served, pytest.raises(lm15.TimeoutError, match="time was up"):
        served.complete(ask())
    with pytest.raises(RequestError, match="timeout"):
        DSPyEngine(engine, timeout=0)


class Full(AdmissionPolicy):
    def admit(self, request, view):
        return Reject("the house is full")


def test_what_the_admission_policy_refuses_may_be_tried_again(engine, served, monkeypatch):
    monkeypatch.setattr(engine.admission, "policy", Full())
    with pytest.raises(lm15.RateLimitError, match="the house is full") as error:
        served.complete(ask())
    assert error.value.retry_after


def test_leaving_a_stream_ends_its_request(engine, served):
    events = served.stream(ask(max_tokens=1500, extensions={"ignore_eos": True}))
    while next(events).type != "delta":
        pass
    events.close()
    assert served.complete(ask()).text
    assert not engine.scheduler.running


def test_cancelling_a_coroutine_ends_its_request(engine, served):
    async def give_up() -> None:
        task = asyncio.create_task(served.asynchronous.complete(ask(max_tokens=1500, extensions={"ignore_eos": True})))
        await served.asynchronous.complete(ask())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
    assert served.complete(ask()).text
    assert not engine.scheduler.running


def test_closing_ends_what_is_under_way_and_gives_the_engine_back(engine):
    served = DSPyEngine(engine)
    ended: list[BaseException] = []
    begun = threading.Event()

    def wait() -> None:
        try:
            for event in served.stream(ask(max_tokens=1500, extensions={"ignore_eos": True})):
                if event.type == "delta":
                    begun.set()
        except lm15.ConfigurationError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait()
    served.close()
    thread.join()
    assert "closed" in str(ended[0])
    with pytest.raises(lm15.ConfigurationError, match="closed"):
        served.complete(ask())
    [[request]] = engine.generate(["One day"], SamplingParams(max_tokens=4, ignore_eos=True))
    assert request.text


def test_a_dead_engine_is_told(monkeypatch):
    engine = engine_of()

    def fail() -> None:
        raise RuntimeError("the lights went out")

    monkeypatch.setattr(engine, "step", fail)
    with DSPyEngine(engine) as served:
        with pytest.raises(lm15.ConfigurationError, match="the lights went out"):
            served.complete(ask())
        with pytest.raises(lm15.ConfigurationError, match="stopped"):
            served.complete(ask())
