"""API keys: who has none, or a wrong one, learns nothing; who has one is known by its name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from engine.config import ConfigError
from engine.server.auth import ApiKeys, given_key
from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve

ALICE, BOB = "alice-1234567890abcdef", "0123456789abcdef-of-bob"
ASK = {"model": "tiny", "prompt": "Once upon a time there was", "max_tokens": 2}


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    config = ServerConfig(port=0, grace_s=0, isolate_clients=True)
    with serve(config, keys=ApiKeys([f"alice:{ALICE}", BOB])) as server:
        yield server


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/metrics", "/cache", "/flush_cache", "/nowhere"])
@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": ALICE[:-1]}])
def test_without_a_known_key_nothing_is_told(server: LiveServer, path: str, headers: dict[str, str]) -> None:
    refused = httpx.post(server.base_url + path, json=ASK, headers=headers)
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    assert refused.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_whether_it_lives_is_told_to_everybody(server: LiveServer, path: str) -> None:
    assert httpx.get(server.base_url + path).status_code == 200


def test_openais_client_is_let_in_by_its_key_and_kept_out_by_another(server: LiveServer) -> None:
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=ALICE) as client:
        assert client.models.list().data[0].id == "tiny"
    stranger = openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError, match="not known"):
        stranger.models.list()


def test_anthropics_client_is_let_in_by_its_key_and_kept_out_by_another(server: LiveServer) -> None:
    ask = {"model": "tiny", "max_tokens": 2, "messages": [{"role": "user", "content": "Hello"}]}
    with anthropic.Anthropic(base_url=server.base_url, api_key=BOB) as client:
        assert client.messages.create(**ask).usage.output_tokens >= 1  # type: ignore[call-overload]
    stranger = anthropic.Anthropic(base_url=server.base_url, api_key="wrong", max_retries=0)
    with stranger, pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(**ask)  # type: ignore[call-overload]


def test_the_name_of_the_key_is_the_client_that_policies_see_and_keys_share_no_prefix(server: LiveServer) -> None:
    seen: list[tuple[str, str]] = []
    engine = server.state.service.engine
    engine.on_finish.append(lambda request: seen.append((request.client, request.namespace)))

    def cached_for(key: str) -> int:
        headers = {"authorization": f"Bearer {key}"}
        ask = ASK | {"prompt": list(range(40, 60)), "user": "mallory"}
        answer = httpx.post(
            f"{server.base_url}/v1/completions",
            json=ask,
            headers=headers,
        )
        return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert cached_for(ALICE) == 0
    assert cached_for(BOB) == 0
    assert cached_for(ALICE) > 0
    (alice, of_alice), (bob, of_bob), _ = seen
    assert alice == "alice"
    assert bob.startswith("key-")
    assert of_alice != of_bob


def test_the_tree_shows_an_isolated_client_its_own_prefixes_only(server: LiveServer) -> None:
    for key, prompt in ((ALICE, [70, 71, 72, 73]), (BOB, [80, 81, 82, 83])):
        headers = {"authorization": f"Bearer {key}"}
        httpx.post(f"{server.base_url}/v1/completions", json=ASK | {"prompt": prompt}, headers=headers)
        tree = httpx.get(f"{server.base_url}/cache?limit=1000", headers=headers).json()
        assert len({node["namespace"] for node in tree["nodes"]}) == len(tree["namespaces"]) == 1
    assert list(tree["namespaces"]) != ["alice/"]


def test_no_key_is_ever_shown(server: LiveServer) -> None:
    headers = {"authorization": f"Bearer {BOB}"}
    shown = [httpx.get(server.base_url + path, headers=headers).text for path in ("/metrics", "/cache?preview=true")]
    assert all(key not in text for key in (ALICE, BOB) for text in shown)


def test_keys_come_from_a_file_with_comments_and_from_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# who may ask\n\nalice:{ALICE}\n  {BOB}  \n")
    keys = ApiKeys.load(file, {"RADIXLAB_API_KEYS": "carol:third-key, fourth-key"})
    assert len(keys) == 4
    assert keys.name_of(ALICE) == "alice"
    assert keys.name_of("third-key") == "carol"
    assert keys.name_of("alice") is None
    assert keys.name_of("") is None


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["two words"], "number 1 is not"),
        (["alice:"], "number 1 is not"),
        ([":key"], "number 1 is not"),
        (["a/b:key"], "number 1 is not"),
        (["a:same", "b:same"], "number 2 .* twice"),
        (["a:one", "a:two"], "number 2 .* twice"),
    ],
)
def test_keys_that_make_no_sense_are_refused_without_being_shown(lines: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        ApiKeys(lines)
    assert "same" not in str(refused.value)


@pytest.mark.parametrize("content", [None, "# nothing but this\n"])
def test_a_file_without_keys_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "keys"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="api_keys_file"):
        ApiKeys.load(file, {})


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"authorization", b"Basic abc"), (b"x-api-key", b"def")], "def"),
        ([(b"authorization", b"Bearer ")], None),
        ([], None),
    ],
)
def test_a_key_is_read_from_either_header(headers: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert given_key(headers) == key
