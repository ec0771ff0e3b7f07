"""Every feature on the engine and on the mock: it works, or is refused before anything is asked."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest

import lang as sgl
from engine import EngineConfig, make_engine
from lang import hints
from lang.backends.base import Backend, Call, Tags
from lang.backends.engine import MISSING, EngineBackend
from lang.backends.features import BACKENDS
from lang.backends.mock import MockBackend
from lang.capabilities import Feature, NotServed
from lang.prompt import Image, Prompt
from lang.sampling import overrides
from tests.lang.backends.conftest import HELLO, TEXT, chat_of
from tests.lang.backends.test_features import ASKED
from tests.lang.backends.test_requests import asked_about


def engine(model: str = "tiny") -> EngineBackend:
    return EngineBackend(make_engine(EngineConfig(device="cpu", model=model, pool_tokens=4096)))


def engine_that_sees() -> EngineBackend:
    return engine("llava-tiny")


def mock() -> MockBackend:
    def reply(prompt: str) -> str:
        return "aba" if "capital" not in prompt else '{"name": "Lima"}'

    return MockBackend(reply=reply)


MAKERS: dict[str, Callable[[], Backend]] = {"engine": engine, "engine that sees": engine_that_sees, "mock": mock}


def png() -> bytes:
    held = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), "teal").save(held, "PNG")
    return held.getvalue()


@sgl.function
def asks(s: sgl.ProgramState, parts: tuple[Any, ...], sampling: dict[str, Any]) -> None:
    for part in parts:
        s += part
    s += sgl.gen("x", **sampling)


def call_of(backend: Backend, prompt: Prompt, sampling: dict[str, Any]) -> Call:
    """Of a program: programs are refused before their calls reach the backend."""
    runner = sgl.Runner(backend)
    run = runner.start(asks, {"parts": tuple(map(as_part, prompt.pieces)), "sampling": sampling})
    until = time.monotonic() + 60
    while runner.active:
        assert time.monotonic() < until, "the program never ended"
        runner.step()
    if run.error is not None:
        raise run.error
    return run.calls[-1]


def as_part(piece: Any) -> Any:
    return sgl.primitives.Concat((piece,))


def ask(backend: Backend, feature: Feature) -> None:
    """Raises NotServed, or shows that it works."""
    if feature is Feature.SELECT:

        @sgl.function
        def choose(s: sgl.ProgramState) -> None:
            s += "Tea or milk? " + sgl.select("x", ["tea", "milk"])

        assert choose.run(backend=backend)["x"] in ("tea", "milk")
    elif feature is Feature.HINTS:
        backend.hint(hints.Prefetch(TEXT, 1), Tags())
        heard = backend.hints if isinstance(backend, MockBackend) else heard_by(backend)
        assert len(heard) == 1
    elif feature is Feature.CONCATENATE:

        @sgl.function
        def joins(s: sgl.ProgramState) -> None:
            s += "Root.\n"
            forks = s.fork(2)
            forks += "branch\n"
            forks.join("concate_and_append")
            s += sgl.gen("x", max_tokens=2)

        assert joins.run(backend=backend).text().startswith("Root.\nbranch\nbranch\n")
    elif feature is Feature.STREAMING:
        state = asks.run((TEXT.text(),), {"max_tokens": 4, "ignore_eos": True}, backend=backend, stream=True)
        assert "".join(state.text_iter("x")) == state["x"]
    else:
        prompts = {
            Feature.CHAT: HELLO,
            Feature.ASSISTANT_PREFIX: chat_of(("user", "Which city?"), "The city is"),
            Feature.IMAGES: asked_about("What is on ", Image(png(), "image/png")),
            Feature.JSON_SCHEMA: HELLO,
        }
        sampling = overrides({"max_tokens": 60 if feature is Feature.JSON_SCHEMA else 6, **ASKED.get(feature, {})})
        call = call_of(backend, prompts.get(feature, TEXT), sampling)
        assert call.error is None
        assert len(call.texts) == ASKED.get(feature, {}).get("n", 1)


def heard_by(backend: Backend) -> list[Any]:
    assert isinstance(backend, EngineBackend)
    return [event for event in backend.engine.log.inputs() if event.kind == "hint"]


@pytest.mark.parametrize("feature", list(Feature))
@pytest.mark.parametrize("name", MAKERS)
def test_a_feature_works_or_is_refused(name: str, feature: Feature) -> None:
    backend = MAKERS[name]()
    blind = MISSING.keys() if name == "engine" else set()
    assert backend.capabilities.missing.keys() == BACKENDS[name.partition(" ")[0]].missing.keys() | blind
    if feature in backend.capabilities.missing:
        with pytest.raises(NotServed, match=re.escape(backend.capabilities.missing[feature])):
            ask(backend, feature)
        assert not getattr(backend, "log", [])
        if isinstance(backend, EngineBackend):
            assert not [event for event in backend.engine.log.inputs() if event.kind in ("arrive", "reject")]
    else:
        ask(backend, feature)
