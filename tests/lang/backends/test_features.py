"""Every feature on every backend over the network: it works, or is refused before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lang.backends.anthropic import AnthropicBackend
from lang.backends.api import ApiBackend
from lang.backends.features import BACKENDS, written
from lang.backends.gemini import GeminiBackend
from lang.backends.openai import OpenAIBackend
from lang.capabilities import Feature, NotServed
from lang.prompt import BranchMark, Image, Prompt
from tests.lang.backends.conftest import HELLO, TEXT, Reply, ScriptedServer, chat_of, gen, needs_gemini, select
from tests.lang.backends.test_failures import ANTHROPIC, OPENAI, WHOLE
from tests.lang.backends.test_openai_chat import CITY, weather
from tests.lang.backends.test_requests import asked_about

MAKERS: dict[str, Callable[[str], ApiBackend]] = {
    "OpenAI chat": lambda url: OpenAIBackend("tiny", base_url=url + "/v1", api_key="k"),
    "OpenAI completions": lambda url: OpenAIBackend("tiny", base_url=url + "/v1", api_key="k", chat=False),
    "chat, `radixlab`": lambda url: OpenAIBackend("tiny", base_url=url + "/v1", api_key="k", extensions="radixlab"),
    "completions, `radixlab`": lambda url: OpenAIBackend(
        "tiny", base_url=url + "/v1", api_key="k", extensions="radixlab", chat=False
    ),
    "Anthropic": lambda url: AnthropicBackend("tiny", base_url=url, api_key="k", sampling=False, prefill=False),
    "Anthropic's protocol elsewhere": lambda url: AnthropicBackend("tiny", base_url=url, api_key="k"),
    "Gemini": lambda url: GeminiBackend("gemini-3.8-flash", base_url=url, api_key="k"),
    "Gemini up to 2.5": lambda url: GeminiBackend("gemini-2.5-flash", base_url=url, api_key="k"),
}
"""What isn't here speaks vLLM's fields, which only vLLM serves."""
NAMES = [pytest.param(name, marks=needs_gemini if "Gemini" in name else ()) for name in MAKERS]

ASKED: dict[Feature, dict[str, Any]] = {
    Feature.REGEX: {"regex": "[ab]{3}"},
    Feature.JSON_SCHEMA: {"json_schema": CITY},
    Feature.STOP_REGEX: {"stop_regex": "[0-9]"},
    Feature.TOOLS: {"tools": [weather], "tool_choice": "none"},
    Feature.LOGPROBS: {"logprobs": 2},
    Feature.N: {"n": 2},
    Feature.SEED: {"seed": 1},
    Feature.STOP: {"stop": "e"},
    Feature.STOP_TOKEN_IDS: {"stop_token_ids": [7]},
    Feature.TOP_K: {"top_k": 3},
    Feature.MIN_P: {"min_p": 0.1},
    Feature.REPETITION_PENALTY: {"repetition_penalty": 1.2},
    Feature.PRESENCE_PENALTY: {"presence_penalty": 0.5},
    Feature.FREQUENCY_PENALTY: {"frequency_penalty": 0.5},
    Feature.MIN_TOKENS: {"min_tokens": 3},
    Feature.IGNORE_EOS: {"ignore_eos": True},
    Feature.FORCED_OUTPUT: {"forced_output": [1, 2]},
    Feature.OUTPUTS: {"outputs": "fixed"},
    Feature.TOKEN_HEALING: {"token_healing": True},
}


def ask(backend: ApiBackend, feature: Feature) -> None:
    """Raises NotServed, or shows that it works."""
    chats = Feature.COMPLETION in backend.capabilities.missing
    usual = HELLO if chats else TEXT
    if feature is Feature.COMPLETION:
        call = gen(backend, TEXT)
    elif feature is Feature.CHAT:
        call = gen(backend, HELLO)
    elif feature is Feature.ASSISTANT_PREFIX:
        call = gen(backend, chat_of(("user", "Which city?"), "The city is"))
    elif feature is Feature.CONCATENATE:
        call = gen(backend, Prompt((BranchMark(True), BranchMark(False), *usual.pieces)))
    elif feature is Feature.IMAGES:
        call = gen(backend, asked_about("What is on ", Image(b"pixels", "image/png")))
    elif feature is Feature.SELECT:
        call = select(backend, ["a", "b"], usual)
    else:
        call = gen(backend, usual, **{"max_tokens": 60 if feature is Feature.JSON_SCHEMA else 6, **ASKED[feature]})
    assert call.error is None
    assert len(call.texts) == ASKED.get(feature, {}).get("n", 1)


@pytest.mark.parametrize("feature", [one for one in Feature if one not in (Feature.HINTS, Feature.STREAMING)])
@pytest.mark.parametrize("name", NAMES)
def test_a_feature_works_or_is_refused(
    server_url: str, gemini_url: str, says: Callable[..., ScriptedServer], name: str, feature: Feature
) -> None:
    capabilities = BACKENDS[name]
    if feature in capabilities.missing:
        silent = says(Reply(500))
        with MAKERS[name](silent.url) as backend:
            assert backend.capabilities == capabilities
            with pytest.raises(NotServed, match=re.escape(capabilities.missing[feature])):
                ask(backend, feature)
        assert silent.bodies == []
        return
    if "Gemini" in name:
        server_url = gemini_url
    elif feature is Feature.IMAGES:  # the tiny model sees none
        server_url = says(Reply(body=WHOLE[ANTHROPIC if "Anthropic" in name else OPENAI])).url
    with MAKERS[name](server_url) as backend:
        ask(backend, feature)


@pytest.mark.parametrize("name", NAMES)
def test_streaming_is_served_unless_it_was_turned_off(name: str, server_url: str, gemini_url: str) -> None:
    with MAKERS[name](gemini_url if "Gemini" in name else server_url) as backend:
        call = gen(backend, HELLO)
        assert call.partial == call.text
    with pytest.raises(NotServed, match="stream=False"):
        OpenAIBackend("m", api_key="k", stream=False).capabilities.need(Feature.STREAMING, "text_iter(...)")


def test_a_select_that_was_turned_off_is_refused() -> None:
    for options in ({"model": "gpt-5.2", "select": None}, {"model": "gpt-3.5-turbo-instruct"}):
        with OpenAIBackend(**options, api_key="k") as backend, pytest.raises(NotServed, match="select=None"):
            select(backend, ["a", "b"], TEXT if "turbo" in options["model"] else HELLO)


def test_the_documentations_table_is_current() -> None:
    document = Path(__file__).parents[3] / "docs" / "language_backends.md"
    text = document.read_text()
    assert written(text) == text, "run: python -m lang.backends.features docs/language_backends.md"
