"""Refusals arrive as the exceptions of OpenAI's and Anthropic's own clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anthropic
import openai
import pytest

from engine.config import EngineConfig
from engine.server.auth import ApiKeys
from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve

Ask = Callable[..., Any]
"""Sends a small request with a key; options go into the body."""


@pytest.fixture(scope="module")
def guarded() -> Iterator[LiveServer]:
    """It wants a key, has room for one waiting sample, and takes small bodies."""
    config = ServerConfig(port=0, grace_s=0, max_waiting=1, max_body_bytes=10_000)
    engine = EngineConfig(model="tiny", device="cpu", pool_tokens=4096)
    with serve(config, engine, keys=ApiKeys(["ann:right-key", "ben:other-key"])) as server:
        yield server


def openai_asks(server: LiveServer, key: str, **options: Any) -> Any:
    with openai.OpenAI(base_url=server.base_url + "/v1", api_key=key, max_retries=0) as client:
        return client.completions.create(**{"model": "tiny", "prompt": "Hello", "max_tokens": 2, **options})


def anthropic_asks(server: LiveServer, key: str, **options: Any) -> Any:
    messages = [{"role": "user", "content": options.pop("prompt", "Hello")}]
    with anthropic.Anthropic(base_url=server.base_url, api_key=key, max_retries=0) as client:
        return client.messages.create(**{"model": "tiny", "messages": messages, "max_tokens": 2, **options})


def test_with_a_right_key_both_are_served(guarded: LiveServer) -> None:
    assert openai_asks(guarded, "right-key").usage.completion_tokens in (1, 2)
    assert openai_asks(guarded, "other-key").usage.completion_tokens in (1, 2)
    assert anthropic_asks(guarded, "right-key").usage.output_tokens in (1, 2)


@pytest.mark.parametrize("key", ["wrong", "right-ke", "right-key1", "ann", "ann:right-key"])
def test_a_wrong_key_is_an_authentication_error(guarded: LiveServer, key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai_asks(guarded, key)
    with pytest.raises(anthropic.AuthenticationError) as caught:
        anthropic_asks(guarded, key)
    assert caught.value.body["error"]["type"] == "authentication_error"


def test_too_much_at_once_is_a_rate_limit_error_that_says_when_to_come_back(guarded: LiveServer) -> None:
    with pytest.raises(openai.RateLimitError) as caught:
        openai_asks(guarded, "right-key", prompt=["one", "two", "three"], n=2)
    assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_huge_body_is_refused_unread(guarded: LiveServer) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        openai_asks(guarded, "right-key", prompt="x" * 20_000)
    assert caught.value.status_code == 413
    with pytest.raises(anthropic.RequestTooLargeError):
        anthropic_asks(guarded, "right-key", prompt="x" * 20_000)


def test_what_isnt_there_is_not_found(guarded: LiveServer) -> None:
    with pytest.raises(openai.NotFoundError):
        openai_asks(guarded, "right-key", model="other")
    with pytest.raises(anthropic.NotFoundError):
        anthropic_asks(guarded, "right-key", model="other")


def test_what_cant_be_served_is_a_bad_request(guarded: LiveServer) -> None:
    with pytest.raises(openai.BadRequestError):
        openai_asks(guarded, "right-key", top_p=7)
    with pytest.raises(anthropic.BadRequestError):
        anthropic_asks(guarded, "right-key", extra_body={"top_p": 7})
