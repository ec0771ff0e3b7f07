"""What goes wrong on the way: refusals, limits, timeouts, streams that break, clients and backends that go away."""

from __future__ import annotations

import gc
import json
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

import anthropic
import openai
import pytest

import lang as sgl
from lang.backends.anthropic import AnthropicBackend
from lang.backends.api import ApiBackend
from lang.backends.base import CallError, Tags
from lang.backends.gemini import GeminiBackend
from lang.backends.openai import OpenAIBackend
from lang.sampling import Sampling
from tests.lang.backends.conftest import (
    HELLO,
    Reply,
    ScriptedServer,
    ended,
    gen,
    needs_gemini,
    select,
    text_of,
)
from tests.lang.backends.gemini_answers import gemini_chunk, gemini_event

Says = Callable[..., ScriptedServer]


def openai_chunk(text: str | None, finish: str | None = None) -> str:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return f"data: {json.dumps({**head, 'choices': [choice]})}"


def anthropic_event(kind: str, **data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}"


_MESSAGE = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
_BEGIN = [
    anthropic_event("message_start", message={**_MESSAGE, "usage": {"input_tokens": 5, "output_tokens": 1}}),
    anthropic_event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
]


def anthropic_text(text: str) -> str:
    return anthropic_event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def anthropic_end(reason: str) -> list[str]:
    return [
        anthropic_event("content_block_stop", index=0),
        anthropic_event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 2}),
        anthropic_event("message_stop"),
    ]


_ERRORS = {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}


class Protocol:
    """What one client library and its server say."""

    def __init__(
        self,
        make: Callable[..., ApiBackend],
        refusal: Callable[[str], Any],
        begun: list[str],
        errors: Mapping[int, str] = _ERRORS,
        names_events: bool = True,
    ) -> None:
        self.make = make
        self.refusal = refusal
        self.errors = errors
        """The client's exceptions by status."""
        self.names_events = names_events
        self.begun = begun
        """A stream that has said "Li"."""


OPENAI = Protocol(
    lambda url, **options: OpenAIBackend("m", base_url=url + "/v1", api_key="k", **options),
    lambda told: {"error": {"message": told, "type": "invalid_request_error", "param": None, "code": None}},
    [openai_chunk("Li")],
)
ANTHROPIC = Protocol(
    lambda url, **options: AnthropicBackend("m", base_url=url, api_key="k", **options),
    lambda told: {"type": "error", "error": {"type": "invalid_request_error", "message": told}},
    [*_BEGIN, anthropic_text("Li")],
)
GEMINI = Protocol(
    lambda url, **options: GeminiBackend("m", base_url=url, api_key="k", **options),
    lambda told: {"error": {"code": 400, "message": told, "status": "INVALID_ARGUMENT"}},
    [gemini_chunk("Li")],
    errors={status: f"ClientError: {status}" for status in _ERRORS},
    names_events=False,
)
PROTOCOLS = [
    pytest.param(OPENAI, id="openai"),
    pytest.param(ANTHROPIC, id="anthropic"),
    pytest.param(GEMINI, id="gemini", marks=needs_gemini),
]
WHOLE = {
    OPENAI: [openai_chunk("Li"), openai_chunk("ma", "stop"), "data: [DONE]"],
    ANTHROPIC: [*_BEGIN, anthropic_text("Li"), anthropic_text("ma"), *anthropic_end("end_turn")],
    GEMINI: [gemini_chunk("Li"), gemini_chunk("ma", finish="STOP")],
}


@pytest.fixture(params=PROTOCOLS)
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


@pytest.mark.parametrize("status", [400, 401, 404])
def test_what_the_server_refuses_is_the_calls_error(says: Says, protocol: Protocol, status: int) -> None:
    server = says(Reply(status, protocol.refusal("the model is asleep")))
    with protocol.make(server.url) as backend:
        call = gen(backend)
    assert call.error.startswith(protocol.errors[status])
    assert "the model is asleep" in call.error
    assert len(server.bodies) == 1, "such requests aren't tried again"


def test_a_limited_request_is_tried_again_when_the_server_says(says: Says, protocol: Protocol) -> None:
    """Or, with Google's client, when its own policy says: seconds later."""
    limited = Reply(429, protocol.refusal("slowly"), {"Retry-After": "0.01"})
    server = says(limited, limited, Reply(body=WHOLE[protocol]))
    with protocol.make(server.url) as backend:
        assert text_of(gen(backend)) == "Lima"
    assert len(server.bodies) == 3


def test_retries_end(says: Says, protocol: Protocol) -> None:
    server = says(Reply(429, protocol.refusal("slowly"), {"Retry-After": "0.01"}))
    with protocol.make(server.url, max_retries=1) as backend:
        call = gen(backend)
    assert call.error.startswith(protocol.errors[429])
    assert "slowly" in call.error
    assert len(server.bodies) == 2


def test_an_answer_that_never_comes_times_out(says: Says, protocol: Protocol) -> None:
    server = says(Reply(body=protocol.begun, hangs=True))
    with protocol.make(server.url, timeout=0.2, max_retries=0) as backend:
        call = gen(backend)
    assert "Timeout" in call.error
    assert call.partial == "Li"


@pytest.mark.parametrize("cleanly", [True, False])
def test_a_stream_that_breaks_off_is_an_error(says: Says, protocol: Protocol, cleanly: bool) -> None:
    server = says(Reply(body=protocol.begun, breaks_off=not cleanly))
    with protocol.make(server.url) as backend:
        call = gen(backend)
    assert call.error
    assert call.texts == ()
    if cleanly:
        assert "broke off after 2 characters" in call.error


def test_an_error_within_a_stream_is_told(says: Says, protocol: Protocol) -> None:
    told = protocol.refusal("the engine is gone")
    event = f"event: error\ndata: {json.dumps(told)}" if protocol.names_events else gemini_event(told)
    server = says(Reply(body=[*protocol.begun, event]))
    with protocol.make(server.url) as backend:
        assert "the engine is gone" in gen(backend).error


def test_a_refusal_of_the_models_is_an_error(says: Says) -> None:
    chunk = json.loads(openai_chunk(None, "stop").removeprefix("data: "))
    chunk["choices"][0]["delta"]["refusal"] = "I won't say"
    with OPENAI.make(says(Reply(body=[f"data: {json.dumps(chunk)}"])).url) as backend:
        assert gen(backend).error == "the model refused: I won't say"
    with ANTHROPIC.make(says(Reply(body=[*_BEGIN, *anthropic_end("refusal")])).url) as backend:
        assert "refused" in gen(backend).error


def test_an_answer_that_is_no_choice_is_an_error(says: Says, protocol: Protocol) -> None:
    with protocol.make(says(Reply(body=WHOLE[protocol])).url) as backend:
        assert "one of ['Cusco', 'Quito'], and said 'Lima'" in select(backend, ["Cusco", "Quito"]).error


def test_a_server_that_echoes_nothing_is_an_error_of_the_select(says: Says) -> None:
    choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": None}
    body = {"id": "c", "object": "text_completion", "created": 1, "model": "m", "choices": [choice]}
    with OpenAIBackend("m", base_url=says(Reply(body=body)).url, api_key="k", chat=False) as backend:
        assert "echoes no log-probabilities" in select(backend, ["a", "b"]).error


def test_text_is_told_while_it_comes(says: Says, protocol: Protocol) -> None:
    server = says(Reply(body=protocol.begun, hangs=True))
    with protocol.make(server.url) as backend:
        call = backend.generate("x", HELLO, Sampling(), Tags())
        while not call.partial:
            assert backend.step() == []
        assert (call.partial, call.finished) == ("Li", False)


def test_an_aborted_call_lets_the_server_go_and_is_never_told(says: Says, protocol: Protocol) -> None:
    server = says(Reply(body=protocol.begun, hangs=True), Reply(body=WHOLE[protocol]))
    with protocol.make(server.url) as backend:
        call = backend.generate("x", HELLO, Sampling(), Tags())
        while not call.partial:
            backend.step()
        backend.abort(call)
        assert server.gone.wait(timeout=30)
        assert text_of(gen(backend)) == "Lima"
        assert not call.finished
        assert backend.step() == []


def test_no_more_requests_go_out_than_allowed(says: Says, protocol: Protocol) -> None:
    server = says(Reply(body=protocol.begun, hangs=True), Reply(body=WHOLE[protocol]))
    with protocol.make(server.url, concurrency=1) as backend:
        first, second = (backend.generate(name, HELLO, Sampling(), Tags()) for name in "ab")
        while not first.partial:
            backend.step()
        backend.step()
        assert len(server.bodies) == 1
        backend.abort(first)
        assert text_of(ended(backend, second)) == "Lima"


def test_a_closed_backend_ends_its_calls_and_takes_none(says: Says, protocol: Protocol) -> None:
    backend = protocol.make(says(Reply(body=protocol.begun, hangs=True)).url)
    call = backend.generate("x", HELLO, Sampling(), Tags())
    backend.close()
    assert ended(backend, call).error == "the backend was closed"
    with pytest.raises(RuntimeError, match="takes no more calls"):
        gen(backend)
    backend.close()


def test_a_forgotten_backend_leaves_no_thread(says: Says) -> None:
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "API calls"}

    before = threads()
    backend = OPENAI.make(says(Reply(body=WHOLE[OPENAI])).url)
    text_of(gen(backend))
    (own,) = threads() - before
    del backend
    gc.collect()
    own.join(timeout=30)
    assert not own.is_alive()


def test_the_error_surfaces_where_the_program_reads(says: Says, protocol: Protocol) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> str:
        s += sgl.user("Which city?")
        s += sgl.assistant(sgl.gen("city"))
        return s["city"]

    with protocol.make(says(Reply(400, protocol.refusal("the model is asleep"))).url) as backend:
        with pytest.raises(CallError, match=f"'city' failed: {protocol.errors[400]}.*the model is asleep"):
            program.run(backend=backend)
        one, other = program.run_batch([{}, {}], backend=backend)
        assert isinstance(one.error(), CallError)
        assert isinstance(other.error(), CallError)


def test_a_given_client_is_used_as_it_is(says: Says) -> None:
    server = says(Reply(body=WHOLE[OPENAI]))
    client = openai.AsyncOpenAI(base_url=server.url, api_key="k", default_headers={"X-Team": "cache"})
    with OpenAIBackend("m", client=client) as backend:
        text_of(gen(backend))
    assert server.headers[0]["x-team"] == "cache"
    with pytest.raises(TypeError, match="api_key"):
        OpenAIBackend("m", client=client, api_key="k")
    with pytest.raises(TypeError, match="AsyncOpenAI"):
        OpenAIBackend("m", client=openai.OpenAI(api_key="k"))
    with pytest.raises(TypeError, match="AsyncAnthropic"):
        AnthropicBackend("m", client=anthropic.Anthropic(api_key="k"))


@pytest.mark.parametrize(
    ("library", "extra", "make"),
    [
        ("openai", "openai", OpenAIBackend),
        ("anthropic", "anthropic", AnthropicBackend),
        ("google.genai", "gemini", GeminiBackend),
    ],
)
def test_without_the_client_library_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, library: str, extra: str, make: Callable[..., ApiBackend]
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"pip install 'radixlab\[{extra}\]'"):
        make("m", api_key="k")
