"""Whole programs on backends over the network: they run side by side, stream, fork and are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

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
def test_on_an_event_loop_steps_are_made_only_when_there_is_news(
    backend: ApiBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"news": 0, "steps": 0}
    step, put = backend.step, backend._news.put

    def counted_step() -> list[sgl.Call]:
        counts["steps"] += 1
        return step()

    def counted_put(call: sgl.Call, outcome: Any) -> None:
        counts["news"] += 1
        put(call, outcome)

    @sgl.function
    async def answer(s: sgl.ProgramState, city: str) -> list[str]:
        s += sgl.user(f"Tell me of {city}.") + sgl.assistant(sgl.gen("first", max_tokens=8))
        pieces = [piece async for piece in s.text_async_iter("first")]
        assert "".join(pieces) == await s.get("first")
        return pieces

    async def main() -> list[sgl.ProgramState]:
        return await asyncio.gather(
            *(answer.run_async(f"city {i}", backend=backend, temperature=0) for i in range(6)),
            *(talk.run_async(f"city {i}", backend=backend, temperature=0) for i in range(2)),
        )

    monkeypatch.setattr(backend, "step", counted_step)
    monkeypatch.setattr(backend._news, "put", counted_put)
    states = asyncio.run(main())
    monkeypatch.undo()
    assert max(len(state.ret_value) for state in states[:6]) > 1
    assert 0 < counts["steps"] <= counts["news"], "nobody polls"
    assert states[6].text() == talk.run("city 0", backend=backend, temperature=0).text()


@pytest.mark.parametrize("backend", ["openai", "anthropic"], indirect=True)  # scripted pieces come all at once
def test_text_comes_in_pieces(backend: ApiBackend) -> None:
    def pieces() -> list[str]:
        state = talk.run("Lima", backend=backend, temperature=0, stream=True)
        came = list(state.text_iter("first"))
        assert "".join(came) == state["first"]
        return came

    assert any(len(pieces()) > 1 for _ in range(10)), "a busy machine may bring all of one answer together, not of ten"


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
