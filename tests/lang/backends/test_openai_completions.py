"""The older completions through OpenAI's own client, on a server of ours: text goes on, and choices are scored."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import pytest

from engine.config import EngineConfig
from engine.make import make_engine
from lang.backends.base import Tags
from lang.backends.engine import EngineBackend
from lang.backends.openai import OpenAIBackend
from lang.capabilities import NotServed
from lang.choices import METHODS, ChoicesMethod, unconditional_likelihood_normalized
from lang.prompt import PLAIN, Prompt
from lang.sampling import Sampling
from tests.lang.backends.conftest import HELLO, TEXT, gen, select, text_of
from tests.lang.backends.test_openai_chat import CITY


@pytest.fixture(scope="module")
def backend(server_url: str) -> Iterator[OpenAIBackend]:
    with OpenAIBackend("tiny", base_url=server_url + "/v1", api_key="none", chat=False, max_retries=0) as backend:
        yield backend


@pytest.fixture(scope="module")
def extended(server_url: str) -> Iterator[OpenAIBackend]:
    options = {"chat": False, "extensions": "radixlab", "stream": False}
    with OpenAIBackend("tiny", base_url=server_url + "/v1", api_key="none", **options) as backend:
        yield backend


@pytest.fixture(scope="module")
def in_process() -> EngineBackend:
    """The same model without a server."""
    return EngineBackend(make_engine(EngineConfig(model="tiny", device="cpu", pool_tokens=8192)))


def finished(backend: EngineBackend, call: object) -> object:
    while not call.finished:
        backend.step()
    assert call.error is None
    return call


def test_text_goes_on_as_on_the_engine(backend: OpenAIBackend, in_process: EngineBackend) -> None:
    call = gen(backend, TEXT, temperature=0)
    expected = finished(in_process, in_process.generate("x", TEXT, Sampling(max_tokens=12, temperature=0), Tags()))
    assert text_of(call) == expected.text == call.partial
    for count in ("prompt_tokens", "completion_tokens"):
        assert call.meta[count] == expected.meta[count]
    assert call.meta["finish_reason"] == "length"


def test_roles_are_written_in_the_style(backend: OpenAIBackend) -> None:
    assert text_of(gen(backend, HELLO, temperature=0)) == text_of(
        gen(backend, Prompt.of([HELLO.text(PLAIN)]), temperature=0)
    )


@pytest.mark.parametrize("streams", [True, False])
def test_samples_and_logprobs(backend: OpenAIBackend, extended: OpenAIBackend, streams: bool) -> None:
    call = gen(backend if streams else extended, TEXT, n=2, seed=3, logprobs=2)
    assert len(set(call.texts)) == 2
    assert len(call.logprobs) == 12
    assert all(2 <= len(token.top) <= 3 for token in call.logprobs)
    told = "".join(token.text for token in call.logprobs if not token.text.startswith("bytes:"))
    assert told == call.text.replace("\ufffd", "")  # of halves of characters, the bytes are told


@pytest.mark.parametrize("prompt", ["One day the little bear went to ", "One day the little bear went to"])
@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_choices_are_scored_as_on_the_engine(
    backend: OpenAIBackend, in_process: EngineBackend, method: ChoicesMethod, prompt: str
) -> None:
    choices = ["the river", "a tree, where honey was", "sleep"]
    call = select(backend, choices, Prompt.of([prompt]), method)
    expected = finished(in_process, in_process.score("x", Prompt.of([prompt]), choices, method, Tags()))
    assert text_of(call) == expected.text
    assert call.meta["choices"] == tuple(choices)
    for mine, theirs in zip(call.meta["input_token_logprobs"], expected.meta["input_token_logprobs"], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)
    assert call.meta["normalized_prompt_logprobs"] == pytest.approx(
        expected.meta["normalized_prompt_logprobs"], abs=1e-4
    )
    assert call.meta["prompt_tokens"] > 0


def test_one_choice_is_scored_too(backend: OpenAIBackend) -> None:
    assert text_of(select(backend, ["sleep"], TEXT, unconditional_likelihood_normalized)) == "sleep"


def test_a_select_needs_something_before_it(backend: OpenAIBackend) -> None:
    with pytest.raises(NotServed, match="put text before it"):
        select(backend, ["a", "b"], Prompt())


def test_with_extensions_output_is_held_to_forms(extended: OpenAIBackend) -> None:
    assert set(text_of(gen(extended, TEXT, regex="[ab]{3}"))) <= {"a", "b"}
    jsonschema.validate(json.loads(text_of(gen(extended, TEXT, json_schema=CITY, max_tokens=100))), CITY)


def test_choices_may_be_written_instead_of_scored(server_url: str) -> None:
    options = {"chat": False, "extensions": "radixlab", "select": "choice"}
    with OpenAIBackend("tiny", base_url=server_url + "/v1", api_key="none", **options) as backend:
        call = select(backend, ["the river", "sleep"], TEXT)
    assert text_of(call) in ("the river", "sleep")
    assert call.meta["choices_method"] == "constrained_decoding"


def test_the_endpoint_follows_from_the_model() -> None:
    def name(model: str) -> str:
        with OpenAIBackend(model, api_key="none") as backend:
            return backend.capabilities.backend

    assert name("gpt-5.2") == name("o9") == "OpenAI's chat completions"
    assert name("davinci-002") == name("gpt-3.5-turbo-instruct-0914") == "OpenAI's completions"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"select": "logprobs"}, "chat=False"),
        ({"select": "choice"}, "extensions"),
        ({"select": "schema", "chat": False}, "chat=True"),
        ({"select": "best"}, "'logprobs', 'choice', 'schema'"),
        ({"extensions": "sglang"}, "radixlab, vllm"),
        ({"concurrency": 0}, "1 or more"),
    ],
    ids=str,
)
def test_options_that_cant_be_are_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OpenAIBackend("any", api_key="none", **options)
