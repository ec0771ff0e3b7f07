"""Pictures through the server, asked by the real clients: what is answered is what the engine answers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest

from engine.config import EngineConfig
from engine.server.config import ServerConfig
from tests.engine.pictures.conftest import draw, file_of
from tests.engine.server.conftest import LiveServer, serve

SUN, SEA = file_of(draw(0)), file_of(draw(1))


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    engine = EngineConfig(model="llava-tiny", device="cpu", pool_tokens=4096)
    with serve(ServerConfig(port=0, grace_s=0, max_images=3), engine) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.base_url + "/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(server: LiveServer) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.base_url, api_key="none", max_retries=0)


def user(*parts: bytes | str) -> list[Any]:
    def part(one: bytes | str) -> dict[str, Any]:
        if isinstance(one, str):
            return {"type": "text", "text": one}
        return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(one).decode()}"}}

    return [{"role": "user", "content": [part(one) for one in parts]}]


def blocks(*parts: bytes | str) -> list[Any]:
    def block(one: bytes | str) -> dict[str, Any]:
        if isinstance(one, str):
            return {"type": "text", "text": one}
        source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(one).decode()}
        return {"type": "image", "source": source}

    return [{"role": "user", "content": [block(one) for one in parts]}]


def test_openais_client_shows_a_picture(server: LiveServer, client: openai.OpenAI) -> None:
    n_image = server.state.service.engine.image_tokens

    def asked(*parts: bytes | str, stream: bool = False) -> Any:
        return client.chat.completions.create(
            model="tiny", messages=user(*parts), max_tokens=5, temperature=0, logprobs=True, stream=stream
        )

    first, again, other = asked(SUN, "What?"), asked(SUN, "What?"), asked(SEA, "What?")
    alone = asked("", "What?").usage.prompt_tokens
    assert first.usage.prompt_tokens == alone + n_image
    assert again.usage.prompt_tokens_details.cached_tokens == first.usage.prompt_tokens - 1
    assert other.usage.prompt_tokens_details.cached_tokens < n_image
    assert again.choices[0].message.content == first.choices[0].message.content
    scores = [[token.logprob for token in one.choices[0].logprobs.content] for one in (first, again, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)
    assert scores[0] != pytest.approx(scores[2], abs=1e-4)
    pieces = [chunk.choices[0].delta.content or "" for chunk in asked(SUN, "What?", stream=True) if chunk.choices]
    assert "".join(pieces) == first.choices[0].message.content


def test_anthropics_client_shows_the_same_picture(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    theirs = client.chat.completions.create(model="tiny", messages=user(SUN, "What?"), max_tokens=5, temperature=0)
    ours = claude.messages.create(
        model="tiny", messages=blocks(SUN, "What?"), max_tokens=5, extra_body={"temperature": 0}
    )
    [block] = ours.content
    assert block.type == "text"
    assert block.text == theirs.choices[0].message.content
    assert theirs.usage is not None
    assert ours.usage.input_tokens + (ours.usage.cache_read_input_tokens or 0) == theirs.usage.prompt_tokens
    counted = claude.messages.count_tokens(model="tiny", messages=blocks(SUN, "What?"))
    assert counted.input_tokens == theirs.usage.prompt_tokens


def test_samples_of_a_prompt_with_two_pictures(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=user(SUN, "or", SEA, "?"), max_tokens=4, temperature=0, n=2
    )
    assert answer.choices[0].message.content == answer.choices[1].message.content


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ([SUN[:120], "What?"], "cut off or broken"),
        ([b"none", "What?"], "it is none"),
        ([SUN] * 4, "3 are allowed"),
    ],
)
def test_what_cant_be_seen_is_refused_alone(client: openai.OpenAI, parts: list[bytes | str], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says):
        client.chat.completions.create(model="tiny", messages=user(*parts), max_tokens=4)
    assert client.chat.completions.create(model="tiny", messages=user(SUN, "?"), max_tokens=1).choices


def test_the_word_for_an_image_in_a_message_is_text(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=user("<image>", SUN), max_tokens=2, temperature=0)
    assert answer.choices


def test_the_places_of_pictures_cant_be_forged(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=[5, -1], max_tokens=2)


def test_metrics_count_what_the_eyes_did(server: LiveServer, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="tiny", messages=user(SUN, "?"), max_tokens=1)
    text = httpx.get(server.base_url + "/metrics").text
    assert "radixlab_images_encoded_total" in text
    nodes = httpx.get(server.base_url + "/cache", params={"preview": True}).json()["nodes"]
    assert nodes


def test_positions_of_pictures_arent_told_as_tokens(server: LiveServer) -> None:
    answer = httpx.post(server.base_url + "/tokenize", json={"messages": user(SUN, "?")})
    assert answer.status_code == 400
    assert "have no tokens" in answer.text
