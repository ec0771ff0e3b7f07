"""OpenAI's own client against /v1/completions and /v1/models: what it sends is served, what it reads is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from engine.config import EngineConfig
from engine.engine import Engine
from engine.make import make_engine
from engine.request import Request, SamplingParams
from tests.engine.server.conftest import LiveServer

PROMPT = "The radix tree keeps what was computed, and"


@pytest.fixture(scope="module")
def client(live_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live_server.base_url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def complete(client: openai.OpenAI) -> Callable[..., Any]:
    """Greedy, of the tiny model, unless something else is asked for."""

    def call(prompt: Any = PROMPT, **options: Any) -> Any:
        asked: dict[str, Any] = {"model": "tiny", "prompt": prompt, "temperature": 0.0, "max_tokens": 12, **options}
        return client.completions.create(**asked)

    return call


@pytest.fixture(scope="module")
def reference() -> Engine:
    """The same model without a server."""
    return make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=8192))


def generate(engine: Engine, prompt: Any = PROMPT, **params: Any) -> Request:
    ((request,),) = engine.generate([prompt], SamplingParams(**{"temperature": 0.0, "max_tokens": 12, **params}))
    assert request.error is None
    return request


# ---- prompts


def test_a_text_prompt_is_answered_as_the_engine_answers(complete: Callable[..., Any], reference: Engine) -> None:
    answer = complete()
    expected = generate(reference)
    assert answer.object == "text_completion"
    assert answer.model == "tiny"
    assert answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason, choice.index) == (expected.text, "length", 0)
    assert choice.logprobs is None
    assert answer.usage.prompt_tokens == expected.prompt_tokens
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == expected.prompt_tokens + 12


def test_token_ids_say_the_same_as_their_text(complete: Callable[..., Any], reference: Engine) -> None:
    ids = generate(reference).key.tolist()
    assert complete(ids).choices[0].text == complete().choices[0].text
    assert complete(ids).usage.prompt_tokens == len(ids)


@pytest.mark.parametrize("as_ids", [False, True], ids=["texts", "token ids"])
def test_a_list_of_prompts_with_n_has_its_choices_in_order(
    complete: Callable[..., Any], reference: Engine, as_ids: bool
) -> None:
    texts = ["One prompt", "and another one", "One prompt more"]
    prompts = [generate(reference, text).key.tolist() for text in texts] if as_ids else texts
    answer = complete(prompts, n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3, 4, 5]
    expected = [generate(reference, text) for text in texts]
    assert [choice.text for choice in answer.choices] == [request.text for request in expected for _ in range(2)]
    assert answer.usage.prompt_tokens == sum(request.prompt_tokens for request in expected)
    assert answer.usage.completion_tokens == 6 * 12


# ---- sampling


def test_a_seed_gives_the_same_samples_again_and_another_one_others(complete: Callable[..., Any]) -> None:
    def texts(seed: int) -> list[str]:
        return [choice.text for choice in complete(temperature=1.0, n=3, seed=seed, max_tokens=16).choices]

    assert texts(7) == texts(7)
    assert len(set(texts(7))) == 3
    assert texts(7) != texts(1000)


@pytest.mark.parametrize("penalty", [{"presence_penalty": 2.0}, {"frequency_penalty": 2.0}])
def test_penalties_are_the_engines(complete: Callable[..., Any], reference: Engine, penalty: dict[str, float]) -> None:
    expected = generate(reference, max_tokens=48, **penalty)
    assert expected.text != generate(reference, max_tokens=48).text, "this prompt shows nothing"
    assert complete(max_tokens=48, **penalty).choices[0].text == expected.text


def test_options_beyond_openais_come_as_extra_body(complete: Callable[..., Any], reference: Engine) -> None:
    options: dict[str, Any] = {"top_k": 3, "min_p": 0.01, "repetition_penalty": 1.5}
    expected = generate(reference, temperature=1.0, seed=3, **options)
    assert complete(temperature=1.0, seed=3, extra_body=options).choices[0].text == expected.text


def test_a_stop_string_cuts_the_text_just_before_it(complete: Callable[..., Any]) -> None:
    whole = complete(max_tokens=24).choices[0].text
    stop = whole[6:9]
    answer = complete(max_tokens=24, stop=[stop, "never said"]).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.text == whole[: whole.index(stop)]
    assert complete(max_tokens=24, stop=stop).choices[0].text == answer.text


def test_logprobs_are_the_engines(complete: Callable[..., Any], reference: Engine) -> None:
    expected = generate(reference, logprobs=3)
    logprobs = complete(logprobs=3).choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx([entry.logprob for entry in expected.logprobs], abs=1e-4)
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset) == 12
    for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert max(top, key=top.__getitem__) == token  # greedy
        assert top[token] == logprob
        assert len(top) == 3  # the one taken is among the likeliest
    assert logprobs.text_offset == sorted(logprobs.text_offset)


def test_echo_scores_the_prompt(complete: Callable[..., Any], reference: Engine) -> None:
    ids = generate(reference).key.tolist()
    answer = complete(echo=True, logprobs=0, max_tokens=0).choices[0]
    assert answer.text == PROMPT
    assert answer.logprobs.token_logprobs[0] is None
    (scored,) = reference.score(ids[:1], [ids[1:]])
    assert answer.logprobs.token_logprobs[1:] == pytest.approx([entry.logprob for entry in scored], abs=1e-4)


def test_echo_puts_the_prompt_before_the_output(complete: Callable[..., Any]) -> None:
    answer = complete(echo=True).choices[0]
    assert answer.text == PROMPT + complete().choices[0].text


# ---- streams


def test_a_stream_adds_up_to_the_whole(complete: Callable[..., Any]) -> None:
    whole = complete(n=2, logprobs=1)
    texts, tokens, reasons = ["", ""], [[], []], [[], []]
    for chunk in complete(n=2, logprobs=1, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            reasons[choice.index] += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert reasons == [["length"], ["length"]]


def test_the_last_chunk_tells_the_usage_with_cached_tokens(complete: Callable[..., Any]) -> None:
    prompt = "A prompt that comes twice, so that the second time it is in the cache."
    complete(prompt)
    *others, last = complete(prompt, stream=True, stream_options={"include_usage": True})
    assert all(chunk.usage is None for chunk in others)
    assert last.choices == []
    assert last.usage.completion_tokens == 12
    # all but the last prompt token, which is always computed
    assert last.usage.prompt_tokens_details.cached_tokens == last.usage.prompt_tokens - 1


def test_a_stream_without_stream_options_tells_no_usage(complete: Callable[..., Any]) -> None:
    chunks = list(complete(stream=True))
    assert chunks
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_the_async_client_is_served_many_at_once(live_server: LiveServer, reference: Engine) -> None:
    prompts = [f"Prompt number {i}" for i in range(12)]

    async def one(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(
            model="tiny", prompt=prompt, temperature=0.0, max_tokens=12, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(base_url=live_server.base_url + "/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(one(client, prompt) for prompt in prompts))

    assert asyncio.run(all_of_them()) == [generate(reference, prompt).text for prompt in prompts]


def test_a_stream_closed_early_frees_its_request(complete: Callable[..., Any], live_server: LiveServer) -> None:
    thread = live_server.state.service.thread
    with complete(max_tokens=4000, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    for _ in range(200):  # 4,000 tokens would take far longer than these
        complete(max_tokens=1)
        if not thread.call(lambda: bool(thread.engine.scheduler.running)).result():
            return
    pytest.fail("the request is still running")


# ---- models


def test_the_model_is_listed_and_retrieved(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4")
    assert "gpt-4" in caught.value.message


# ---- errors


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": -0.5}, "temperature", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 10**6}, "n", "at most"),
        ({"logprobs": 10_000}, "logprobs", "less than or equal to"),
        ({"stop": [""]}, "stop", "characters"),
        ({"suffix": "and so on"}, "suffix", "not supported"),
        ({"best_of": 4}, "best_of", "not supported"),
        ({"logit_bias": {"17": 5}}, "logit_bias", "not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"prompt": [1, 2, 512]}, None, "512"),
        ({"prompt": [1, "two"]}, "prompt", "token id"),
        ({"prompt": []}, "prompt", "prompt"),
        ({"extra_body": {"temprature": 0.5}}, "temprature", "did you mean temperature?"),
        ({"extra_body": {"regex": "(", "temperature": 1.0}}, None, "regex"),
        ({"extra_body": {"regex": "a+", "choice": ["a", "b"]}}, "choice", "together"),
    ],
    ids=str,
)
def test_what_cant_be_served_is_a_bad_request_that_names_it(
    complete: Callable[..., Any], options: dict[str, Any], param: str | None, says: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(**options)
    assert caught.value.type == "invalid_request_error"
    assert says in caught.value.message
    if param is not None:
        assert caught.value.param == param


def test_a_prompt_that_is_too_long_says_by_how_much(complete: Callable[..., Any], live_server: LiveServer) -> None:
    limit = min(live_server.state.service.max_context, live_server.state.service.engine.capacity_tokens)
    with pytest.raises(openai.BadRequestError) as caught:
        complete([5] * limit, max_tokens=1)
    assert f"{limit + 1}" in caught.value.message.replace(",", "")
    assert f"{limit}" in caught.value.message.replace(",", "")


def test_an_unknown_model_is_not_found(complete: Callable[..., Any]) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        complete(model="gpt-4")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "tiny" in caught.value.message


def test_an_unknown_address_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="tiny", input="text")


def test_a_request_whose_time_is_up_is_told_so(complete: Callable[..., Any]) -> None:
    with pytest.raises(openai.InternalServerError) as caught:
        complete(max_tokens=4000, extra_body={"timeout": 0.05, "ignore_eos": True})
    assert caught.value.status_code == 504
    assert caught.value.code == "deadline_exceeded"


def test_a_refusal_has_openais_shape(live_server: LiveServer) -> None:
    answer = httpx.post(live_server.base_url + "/v1/completions", json={"model": "tiny"})
    assert answer.status_code == 400
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["param"] == "prompt"
