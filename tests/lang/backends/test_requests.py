"""What is sent, where our own server can't show it: images, hosts with rules of their own, vLLM's fields."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

import lang as sgl
from lang.backends.openai import OpenAIBackend
from lang.capabilities import NotServed
from lang.prompt import Image, Prompt, RoleMark
from tests.lang.backends.conftest import HELLO, TEXT, Reply, ScriptedServer, chat_of, gen, select, text_of
from tests.lang.backends.test_failures import ANTHROPIC, OPENAI, PROTOCOLS, WHOLE, Protocol, openai_chunk
from tests.lang.backends.test_openai_chat import weather

Says = Callable[..., ScriptedServer]
PICTURE = Image(b"\x89PNG and so on", "image/png")
DATA = base64.b64encode(PICTURE.data).decode()


def asked_about(*content: str | Image) -> Prompt:
    return Prompt.of([RoleMark("user", True), *content, RoleMark("user", False), RoleMark("assistant", True)])


def sent(server: ScriptedServer) -> dict[str, Any]:
    (body,) = server.bodies
    return body


def test_openai_is_shown_images_as_data_urls(says: Says) -> None:
    server = says(Reply(body=WHOLE[OPENAI]))
    with OPENAI.make(server.url) as backend:
        text_of(gen(backend, asked_about("What is on ", PICTURE, PICTURE, "?")))
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{DATA}"}}
    content = [{"type": "text", "text": "What is on "}, image, image, {"type": "text", "text": "?"}]
    assert sent(server)["messages"] == [{"role": "user", "content": content}]


def test_anthropic_is_shown_images_in_base64(says: Says) -> None:
    server = says(Reply(body=WHOLE[ANTHROPIC]))
    with ANTHROPIC.make(server.url) as backend:
        text_of(gen(backend, asked_about("What is on ", PICTURE, "?")))
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}
    content = [{"type": "text", "text": "What is on "}, image, {"type": "text", "text": "?"}]
    assert sent(server)["messages"] == [{"role": "user", "content": content}]


def test_anthropics_first_system_messages_are_the_requests_own(says: Says) -> None:
    server = says(Reply(body=WHOLE[ANTHROPIC]))
    said = [("system", "Be brief."), ("system", "Be kind."), ("user", "Hello"), ("system", "Be quick.")]
    with ANTHROPIC.make(server.url) as backend:
        text_of(gen(backend, chat_of(*said)))
    blocks = [{"type": "text", "text": text} for _, text in said]
    assert sent(server)["system"] == blocks[:2]
    assert sent(server)["messages"] == [
        {"role": "user", "content": blocks[2:3]},
        {"role": "system", "content": blocks[3:]},
    ]


@pytest.mark.parametrize(
    ("prompt", "says_so"),
    [
        (chat_of(("user", "Hello"), PICTURE), "message"),
        (chat_of(("system", PICTURE), ("user", "Hello")), "images in messages of the user"),
        (Prompt.of([RoleMark("user", True), "Hello"]), r"inside user\("),
        (Prompt.of([RoleMark("user", True), "Hello", RoleMark("user", False)]), r"inside assistant\("),
        (Prompt.of([RoleMark("user", True), "Hello", RoleMark("user", False), "So:"]), "between roles"),
        (chat_of(("system", "You are brief.")), "a message to answer"),
        (chat_of(), "a message to answer"),
    ],
    ids=["image by the assistant", "image by the system", "in user", "after user", "between", "system", "nothing"],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_chat_cant_say_is_refused_before_anything_is_sent(
    says: Says, protocol: Protocol, prompt: Prompt, says_so: str
) -> None:
    server = says(Reply(body=WHOLE[protocol]))
    with protocol.make(server.url) as backend, pytest.raises(NotServed, match=says_so):
        gen(backend, prompt)
    assert server.bodies == []


def as_if_hosted(server: ScriptedServer) -> OpenAIBackend:
    """Made for OpenAI's own address, but asks the server."""
    client = openai.AsyncOpenAI(base_url="https://api.openai.com/v1", api_key="k")
    backend = OpenAIBackend("gpt-5.2", client=client)
    client.base_url = server.url
    return backend


def test_a_select_at_openai_leaves_room_to_think(says: Says) -> None:
    said = [openai_chunk('{"choice": "Lima"}', "stop")]
    server = says(Reply(body=said))
    with as_if_hosted(server) as backend:
        assert text_of(select(backend, ["Lima", "Cusco"])) == "Lima"
    body = sent(server)
    assert not {"max_tokens", "max_completion_tokens"} & set(body)
    schema = body["response_format"]["json_schema"]
    assert schema["strict"]
    assert schema["schema"]["properties"] == {"choice": {"type": "string", "enum": ["Lima", "Cusco"]}}


def test_only_what_was_asked_for_is_sent_to_openai_itself(says: Says) -> None:
    """Some of its models refuse even default values, and the older name of max_completion_tokens."""
    server = says(Reply(body=WHOLE[OPENAI]))
    with as_if_hosted(server) as backend:
        text_of(gen(backend, seed=3, stop="\n"))
    assert sent(server) == {
        "model": "gpt-5.2",
        "messages": [message.as_data() for message in HELLO.messages()[:2]],
        "max_completion_tokens": 12,
        "seed": 3,
        "stop": ["\n"],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_other_servers_are_told_the_defaults_too(says: Says) -> None:
    """They may have others for a model."""
    server = says(Reply(body=WHOLE[OPENAI]))
    with OPENAI.make(server.url) as backend:
        text_of(gen(backend))
    assert {name: sent(server)[name] for name in ("max_tokens", "temperature", "top_p")} == {
        "max_tokens": 12,
        "temperature": 1.0,
        "top_p": 1.0,
    }


@pytest.mark.parametrize("protocol", [PROTOCOLS[0], PROTOCOLS[2]])
def test_a_server_that_tells_no_usage_leaves_the_counts_open(says: Says, protocol: Protocol) -> None:
    with protocol.make(says(Reply(body=WHOLE[protocol])).url) as backend:
        assert gen(backend).meta == {
            "prompt_tokens": None,
            "cached_tokens": None,
            "completion_tokens": None,
            "finish_reason": "stop",
        }


def test_calls_of_tools_stand_in_the_prompts_that_go_on(says: Says) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> None:
        s += sgl.user("Is it warm?")
        s += sgl.assistant(sgl.gen("call", tools=[weather]))
        s += sgl.user("Yes.")
        s += sgl.assistant(sgl.gen("answer"))

    called = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    chunk = json.loads(openai_chunk(None, "tool_calls").removeprefix("data: "))
    chunk["choices"][0]["delta"]["tool_calls"] = [called]
    server = says(Reply(body=[f"data: {json.dumps(chunk)}"]), Reply(body=WHOLE[OPENAI]))
    with OPENAI.make(server.url) as backend:
        assert program.run(backend=backend)["answer"] == "Lima"
    written = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": written}


class TestVllm:
    """Its own fields."""

    def body(self, says: Says, ask: Callable[[OpenAIBackend], Any], **options: Any) -> dict[str, Any]:
        server = says(Reply(body=WHOLE[OPENAI]))
        with OpenAIBackend("m", base_url=server.url, api_key="k", extensions="vllm", **options) as backend:
            ask(backend)
        return sent(server)

    def test_sampling(self, says: Says) -> None:
        body = self.body(says, lambda backend: gen(backend, min_p=0.1, stop_token_ids=[7], ignore_eos=True))
        expected = {
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.0,
            "min_tokens": 0,
            "ignore_eos": True,
            "stop_token_ids": [7],
        }
        assert {name: body[name] for name in expected} == expected
        assert self.body(says, lambda backend: gen(backend, top_k=5))["top_k"] == 5

    def test_constraints(self, says: Says) -> None:
        schema = {"type": "object"}
        assert self.body(says, lambda b: gen(b, regex="a+"))["structured_outputs"] == {"regex": "a+"}
        assert self.body(says, lambda b: select(b, ["Lima", "b"]))["structured_outputs"] == {"choice": ["Lima", "b"]}
        body = self.body(says, lambda b: gen(b, TEXT, json_schema=schema), chat=False)
        assert body["structured_outputs"] == {"json": schema}
        body = self.body(says, lambda b: gen(b, json_schema=schema))
        assert body["response_format"]["json_schema"] == {"name": "output", "schema": schema, "strict": True}

    def test_a_message_that_goes_on(self, says: Says) -> None:
        body = self.body(says, lambda backend: gen(backend, chat_of(("user", "Which city?"), "The city is ")))
        assert body["messages"][-1] == {"role": "assistant", "content": "The city is "}
        assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
