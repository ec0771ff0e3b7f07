"""Messages through Anthropic's own client, on a server of ours."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import jsonschema
import pytest

from lang.backends.anthropic import AnthropicBackend
from lang.capabilities import NotServed
from lang.choices import unconditional_likelihood_normalized
from tests.lang.backends.conftest import TEXT, chat_of, gen, select, text_of
from tests.lang.backends.test_openai_chat import CITY, weather


@pytest.fixture(scope="module")
def backend(server_url: str) -> Iterator[AnthropicBackend]:
    with AnthropicBackend("tiny", base_url=server_url, api_key="none", max_retries=0) as backend:
        yield backend


@pytest.fixture(scope="module")
def unstreamed(server_url: str) -> Iterator[AnthropicBackend]:
    with AnthropicBackend("tiny", base_url=server_url, api_key="none", stream=False) as backend:
        yield backend


def test_an_answer_is_what_the_client_gets(
    backend: AnthropicBackend, unstreamed: AnthropicBackend, server_url: str
) -> None:
    with anthropic.Anthropic(base_url=server_url, api_key="none") as client:
        expected = client.messages.create(
            model="tiny",
            max_tokens=12,
            system="You are brief.",
            messages=[{"role": "user", "content": "Which city is the capital of Peru?"}],
            extra_body={"temperature": 0},
        )
    call = gen(backend, temperature=0)
    assert text_of(call) == expected.content[0].text == call.partial == text_of(gen(unstreamed, temperature=0))
    usage = expected.usage
    assert call.meta == {
        "prompt_tokens": usage.input_tokens + usage.cache_read_input_tokens,
        "cached_tokens": call.meta["prompt_tokens"] - 1,
        "completion_tokens": 12,
        "finish_reason": "length",
    }


def test_sampling_is_sent_to_a_server_that_takes_it(backend: AnthropicBackend) -> None:
    greedy = text_of(gen(backend, temperature=0))
    assert text_of(gen(backend, top_k=1)) == greedy
    assert text_of(gen(backend, top_p=1e-6)) == greedy


def test_a_stop_string_cuts_the_text(backend: AnthropicBackend) -> None:
    whole = text_of(gen(backend, temperature=0))
    stopped = gen(backend, temperature=0, stop=[whole[3:6]])
    assert text_of(stopped) == whole[: whole.index(whole[3:6])]
    assert stopped.meta["finish_reason"] == "stop"


def test_a_message_of_the_assistants_goes_on(backend: AnthropicBackend) -> None:
    asked = ("user", "Which city is the capital of Peru?")
    begun = gen(backend, chat_of(asked, "The capital is"), temperature=0)
    assert text_of(begun) != text_of(gen(backend, chat_of(asked), temperature=0))
    assert begun.meta["prompt_tokens"] > gen(backend, chat_of(asked)).meta["prompt_tokens"]


@pytest.mark.parametrize("streams", [True, False])
def test_a_schema_holds_the_output(backend: AnthropicBackend, unstreamed: AnthropicBackend, streams: bool) -> None:
    call = gen(backend if streams else unstreamed, json_schema=CITY, max_tokens=100)
    jsonschema.validate(json.loads(text_of(call)), CITY)
    assert call.meta["finish_reason"] == "stop"


@pytest.mark.parametrize("streams", [True, False])
def test_calls_of_tools_come_as_data(backend: AnthropicBackend, unstreamed: AnthropicBackend, streams: bool) -> None:
    one = backend if streams else unstreamed
    for choice in ("weather", "required"):
        call = gen(one, tools=[weather], tool_choice=choice, max_tokens=300, temperature=0)
        assert call.error is None
        assert {called.name for called in call.tool_calls} == {"weather"}
        assert all(called.arguments in ({"where": True}, {"where": False}) for called in call.tool_calls)
    assert gen(one, tools=[weather], tool_choice="none").tool_calls == ()
    assert text_of(gen(one, tools=[weather], temperature=0)) != ""


def test_a_call_of_a_tool_that_is_cut_off_is_an_error(backend: AnthropicBackend) -> None:
    asked = {"tools": [weather], "tool_choice": "required", "temperature": 0}
    errors = {gen(backend, max_tokens=n, **asked).error for n in range(8, 40, 8)}
    assert any(error is not None and "more max_tokens" in error for error in errors)


def test_select_has_the_model_write_a_choice(backend: AnthropicBackend) -> None:
    choices = ["Lima", "Cusco", 'a "quoted" one']
    call = select(backend, choices)
    assert text_of(call) in choices
    assert (call.meta["choices"], call.meta["choices_method"]) == (tuple(choices), "constrained_decoding")
    with pytest.raises(NotServed, match="greedy_token_selection"):
        select(backend, choices, method=unconditional_likelihood_normalized)


def test_a_form_and_the_begin_of_a_message_dont_go_together(backend: AnthropicBackend) -> None:
    begun = chat_of(("user", "Which city?"), "The city is ")
    with pytest.raises(NotServed, match=r"select\(\.\.\.\) after text"):
        select(backend, ["Lima", "Cusco"], begun)
    with pytest.raises(NotServed, match=r"json_schema=\.\.\.\) after text"):
        gen(backend, begun, json_schema=CITY)


def test_text_without_roles_is_refused(backend: AnthropicBackend) -> None:
    with pytest.raises(NotServed, match=r"inside user\(\.\.\.\)"):
        gen(backend, TEXT)


class TestAnthropicsOwn:
    """Nothing is sent."""

    @pytest.fixture
    def own(self) -> Iterator[AnthropicBackend]:
        with AnthropicBackend("claude-opus-5-5", base_url="https://api.anthropic.com", api_key="none") as backend:
            yield backend

    @pytest.mark.parametrize("asked", [{"temperature": 0}, {"top_p": 0.9}, {"top_k": 3}], ids=str)
    def test_sampling_is_refused(self, own: AnthropicBackend, asked: dict[str, float]) -> None:
        with pytest.raises(NotServed, match="leave it out"):
            gen(own, **asked)

    def test_a_blank_stop_is_refused(self, own: AnthropicBackend) -> None:
        with pytest.raises(NotServed, match="more than white space"):
            gen(own, stop="\n")

    def test_only_older_models_go_on_with_their_message(self, own: AnthropicBackend) -> None:
        begun = chat_of(("user", "Which city?"), "The city is ")
        with pytest.raises(NotServed, match="claude-opus-4-5"):
            gen(own, begun)
        with AnthropicBackend("claude-opus-4-5", base_url="https://api.anthropic.com", api_key="none") as older:
            assert "assistant_prefix" not in older.capabilities.missing


def test_without_a_key_nothing_is_made(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    for variable in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="ANTHROPIC_API_KEY"):
        AnthropicBackend("claude-opus-5-5")
