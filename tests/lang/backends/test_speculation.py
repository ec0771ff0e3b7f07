"""One over-long request serves several gens, through the providers' own clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

import lang as sgl
from lang.backends.anthropic import AnthropicBackend
from lang.backends.api import ApiBackend
from lang.backends.openai import OpenAIBackend
from tests.lang.backends.conftest import Reply, ScriptedServer
from tests.lang.backends.test_failures import (
    _BEGIN,
    ANTHROPIC,
    OPENAI,
    Protocol,
    anthropic_end,
    anthropic_text,
    openai_chunk,
)

Says = Callable[..., ScriptedServer]
CARD = ["Ada Love", "lace\nBirth", "day: 10 December 1815\nJ", "ob: mathematician\n"]


def run(program: sgl.Program, backend: ApiBackend, **sampling: Any) -> sgl.ProgramRun:
    """To its end, whatever comes of it."""
    runner = sgl.Runner(backend)
    begun = runner.start(program, {}, sampling=sampling)
    while runner.active:
        runner.step()
    return begun


# ---- our own server


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("extensions", [None, "radixlab"])
def test_completions_are_the_same_with_and_without(server_url: str, stream: bool, extensions: str | None) -> None:
    def going_on(s: sgl.ProgramState) -> None:
        s += "The radix tree keeps what was computed, and" + sgl.gen("a", stop="d and and")
        s += "d and" + sgl.gen("b", stop="d")
        forks = s.fork(2)
        forks += ["d and and", "d or"]
        forks += sgl.gen("c", stop=" and and and", max_tokens=40)
        forks.join()
        s += "".join(s["c"]) + sgl.gen("d", max_tokens=4)

    options: dict[str, Any] = {"chat": False, "stream": stream, "extensions": extensions}
    with OpenAIBackend("tiny", base_url=server_url + "/v1", api_key="k", **options) as backend:
        plain, speculated = (
            run(sgl.function(num_api_spec_tokens=n)(going_on), backend, temperature=0) for n in (0, 40)
        )
    assert speculated.error is None
    assert speculated.state.text() == plain.state.text()
    for name in "abcd":
        assert speculated.state[name] == plain.state[name]
    assert speculated.state["a"] == " an"
    assert len(plain.calls) == 5
    assert speculated.speculation.saved_calls == 2, "b, and the branch that goes on as the model did"
    assert len(speculated.calls) == 3
    assert speculated.state.get_meta_info("a")["completion_tokens"] == 128
    assert (
        0
        < (speculated.speculation.wasted_tokens or 0)
        < sum(call.meta["completion_tokens"] for call in speculated.calls)
    )


@pytest.mark.parametrize("protocol", ["openai", "anthropic"])
def test_a_message_is_one_request(server_url: str, protocol: str) -> None:
    @sgl.function(num_api_spec_tokens=20)
    def message(s: sgl.ProgramState) -> None:
        three = {"stop_regex": r"(?<=\n\n\n)\n", "max_tokens": 20}
        s += sgl.user("Hello") + sgl.assistant(sgl.gen("a", **three) + "\n" + sgl.gen("b", **three))

    with (
        OpenAIBackend("tiny", base_url=server_url + "/v1", api_key="k")
        if protocol == "openai"
        else AnthropicBackend("tiny", base_url=server_url, api_key="k", prefill=False)
    ) as backend:
        done = run(message, backend, temperature=0)
        assert done.error is None
        assert (done.state["a"], done.state["b"]) == ("\n\n\n", "\n\n\n"), "the tiny model says nothing else here"
        assert [call.text for call in done.calls] == ["\n" * 20]
        with pytest.raises(sgl.NotServed, match="stop_regex"):
            message.run(backend=backend, num_api_spec_tokens=0)


# ---- servers that say what the test tells them


def said(protocol: Protocol, pieces: list[str], *, ended: bool = True) -> Reply:
    if protocol is OPENAI:
        end = [openai_chunk("", "stop" if ended else "length"), "data: [DONE]"]
        return Reply(body=[*map(openai_chunk, pieces), *end])
    return Reply(body=[*_BEGIN, *map(anthropic_text, pieces), *anthropic_end("end_turn" if ended else "max_tokens")])


def options(protocol: Protocol) -> dict[str, Any]:
    return {"prefill": False} if protocol is ANTHROPIC else {}


@sgl.function(num_api_spec_tokens=256)
def card(s: sgl.ProgramState, text: str = "\nBirthday: ") -> None:
    s += sgl.user("Name, birthday, job?")
    with s.assistant():
        s += sgl.gen("name", stop="\n") + text + sgl.gen("birthday", stop="\n") + "\nJob: " + sgl.gen("job", stop="\n")


@pytest.fixture(params=[OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


def test_one_request_without_stops_serves_the_message(says: Says, protocol: Protocol) -> None:
    server = says(said(protocol, CARD))
    with protocol.make(server.url, **options(protocol)) as backend:
        state = card.run(backend=backend)
    assert (state["name"], state["birthday"], state["job"]) == ("Ada Lovelace", "10 December 1815", "mathematician")
    (body,) = server.bodies
    assert body["max_tokens"] == 256
    assert not {"stop", "stop_sequences"} & body.keys()
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert state.speculation()[:2] == (2, 1)
    assert state.get_meta_info("birthday")["speculation"] == "served"


def test_a_stream_of_the_first_gen_ends_at_its_stop(says: Says, protocol: Protocol) -> None:
    server = says(said(protocol, CARD))
    with protocol.make(server.url, **options(protocol)) as backend:
        state = card.run(backend=backend, stream=True, max_tokens=256)
        assert "".join(state.text_iter("name")) == "Ada Lovelace"
        assert "".join(state.text_iter()) == state.text()
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("text", "pieces", "why"),
    [
        ("\nBorn: ", CARD, "the answer goes on with 'irthday: 10"),
        ("\nBirthday: ", CARD[:2], "the answer ends where the program goes on with 'day: '"),
        ("\nBirthday: ", [*CARD[:2], "day: 10 Dec"], "the answer ends with '10 Dec' before its stop was found"),
    ],
)
def test_what_such_a_chat_can_not_go_on_with_fails_and_sends_nothing(
    says: Says, protocol: Protocol, text: str, pieces: list[str], why: str
) -> None:
    server = says(said(protocol, pieces, ended=False))
    with protocol.make(server.url, **options(protocol)) as backend:
        (state,) = card.run_batch([(text,)], backend=backend, max_tokens=256)
        assert state["name"] == "Ada Lovelace"
        with pytest.raises(sgl.NotServed, match="a call after text of the same assistant message") as caught:
            state["birthday"]
    assert why in str(caught.value)
    assert len(server.bodies) == 1


def test_where_a_message_can_go_on_the_real_prompt_is_sent(says: Says) -> None:
    server = says(said(ANTHROPIC, CARD), said(ANTHROPIC, ["1815\nJob: poet\n"]))
    with ANTHROPIC.make(server.url) as backend:
        state = card.run("\nBorn: ", backend=backend)
    assert (state["name"], state["birthday"], state["job"]) == ("Ada Lovelace", "1815", "poet")
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "assistant"]
    assert json.dumps(server.bodies[1]["messages"][1]).count(r"Ada Lovelace\nBorn: ") == 1
    assert len(server.bodies) == 2


def test_what_a_server_does_not_count_is_not_told_as_nothing(says: Says) -> None:
    with OPENAI.make(says(said(OPENAI, CARD)).url) as backend:
        state = card.run(backend=backend)
    assert state.speculation() == (2, 1, None)


def test_cancelling_ends_the_long_request(says: Says, protocol: Protocol) -> None:
    server = says(Reply(body=protocol.begun, hangs=True))
    with protocol.make(server.url, **options(protocol)) as backend:
        runner = sgl.Runner(backend)
        begun = runner.start(card, {})
        while not server.bodies:
            runner.step()
        runner.cancel(begun)
        assert server.gone.wait(timeout=30)
    assert begun.status == "cancelled"
