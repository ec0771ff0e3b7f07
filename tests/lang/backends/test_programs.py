"""Whole programs on backends over the network: they run side by side, stream, fork and are cancelled."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import lang as sgl
from lang.backends.anthropic import AnthropicBackend
from lang.backends.api import ApiBackend
from lang.backends.gemini import GeminiBackend
from lang.backends.openai import OpenAIBackend
from tests.lang.backends.conftest import Reply, ScriptedServer, needs_gemini
from tests.lang.backends.test_failures import PROTOCOLS, Protocol

MAKERS: dict[str, Callable[[str, str], ApiBackend]] = {
    "openai": lambda server, _: OpenAIBackend("tiny", base_url=server + "/v1", api_key="k"),
    "anthropic": lambda server, _: AnthropicBackend("tiny", base_url=server, api_key="k"),
    "gemini": lambda _, server: GeminiBackend("tiny", base_url=server, api_key="k"),
}


@pytest.fixture(scope="module", params=["openai", "anthropic", pytest.param("gemini", marks=needs_gemini)])
def backend(request: pytest.FixtureRequest, server_url: str, gemini_url: str) -> Iterator[ApiBackend]:
    with MAKERS[request.param](server_url, gemini_url) as backend:
        yield backend


@sgl.function
def talk(s: sgl.ProgramState, city: str) -> None:
    s += sgl.system("You are brief.")
    s += sgl.user(f"Tell me of {city}.")
    s += sgl.assistant(sgl.gen("first", max_tokens=8))
    s += sgl.user("Was that true?")
    s += sgl.assistant(sgl.select("sure", ["yes", "no"]))


def test_many_programs_run_together_and_each_gets_its_own_answers(backend: ApiBackend) -> None:
    cities = [{"city": f"city {i}"} for i in range(24)]
    together = talk.run_batch(cities, backend=backend, temperature=0)
    alone = [talk.run(**city, backend=backend, temperature=0) for city in cities[:3]]
    for one, other in zip(together, alone):
        assert one.text() == other.text()
    for state in together:
        assert state.error() is None
        assert state["sure"] in ("yes", "no")
        assert [message["role"] for message in state.messages()] == ["system", "user", "assistant", "user", "assistant"]
        assert state.messages()[2]["content"] == state["first"]


@pytest.mark.parametrize("backend", ["openai", "anthropic"], indirect=True)  # scripted pieces come all at once
def test_text_comes_in_pieces(backend: ApiBackend) -> None:
    state = talk.run("Lima", backend=backend, temperature=0, stream=True)
    pieces = list(state.text_iter("first"))
    assert len(pieces) > 1
    assert "".join(pieces) == state["first"]


def test_branches_go_side_by_side(backend: ApiBackend) -> None:
    @sgl.function
    def program(s: sgl.ProgramState) -> list[str]:
        s += sgl.user("Two tips, please.")
        branches = s.fork(2)
        for i, branch in enumerate(branches):
            branch += sgl.user(f"Tip {i}?")
            branch += sgl.assistant(sgl.gen("tip", max_tokens=6))
        return [branch["tip"] for branch in branches]

    tips = program.run(backend=backend, temperature=0).ret_value
    assert len(tips) == 2
    assert all(isinstance(tip, str) for tip in tips)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cancelling_a_program_closes_its_connection(says: Callable[..., ScriptedServer], protocol: Protocol) -> None:
    server = says(Reply(body=protocol.begun, hangs=True))
    with protocol.make(server.url) as backend:
        runner = sgl.Runner(backend)
        run = runner.start(talk, {"city": "Lima"})
        while not server.bodies:
            runner.step()
        runner.cancel(run)
        assert server.gone.wait(timeout=30)
    assert run.status == "cancelled"
