"""A server of our own, one that says what a test tells it to, and how a call is waited for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from lang.backends.api import ApiBackend
from lang.backends.base import Call, Tags
from lang.choices import ChoicesMethod, token_length_normalized
from lang.prompt import Image, Piece, Prompt, RoleMark
from lang.sampling import Sampling, overrides
from tests.engine.server.conftest import serve
from tests.lang.backends.gemini_answers import gemini_reply

try:
    import google.genai as genai
except ImportError:
    genai = None

needs_gemini = pytest.mark.skipif(genai is None, reason="google-genai isn't installed")


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """Of a server over the tiny model, without a slash at its end."""
    with serve() as server:
        yield server.base_url


@pytest.fixture(scope="session")
def gemini_url() -> Iterator[str]:
    """Of a server that gives any request of Gemini's protocol an answer that suits it."""
    server = ScriptedServer([Reply(body=gemini_reply)])
    yield server.url
    server.close()


class Reply(NamedTuple):
    status: int = 200
    body: Any = None
    """JSON; or a list of the events of a stream, each the lines of one; or what makes one of the path and the body
    asked."""
    headers: Mapping[str, str] = MappingProxyType({})
    breaks_off: bool = False
    """The connection goes before the stream's end."""
    hangs: bool = False
    """Nothing more comes until the client goes."""


class ScriptedServer:
    """Gives its replies one after another, the last again and again, and keeps what it was asked."""

    def __init__(self, replies: Sequence[Reply]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        """With their queries."""
        self.gone = threading.Event()
        """A client has gone while it was kept waiting."""
        self.closing = threading.Event()
        scripted, replies = self, list(replies)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                asked = json.loads(self.rfile.read(length))
                scripted.bodies.append(asked)
                scripted.paths.append(self.path)
                scripted.headers.append({name.lower(): value for name, value in self.headers.items()})
                reply = replies.pop(0) if len(replies) > 1 else replies[0]
                self._say(reply._replace(body=reply.body(self.path, asked)) if callable(reply.body) else reply)

            def _say(self, reply: Reply) -> None:
                streams = isinstance(reply.body, list)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "text/event-stream" if streams else "application/json")
                if not streams:
                    data = json.dumps(reply.body).encode()
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                    return
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                for event in reply.body:
                    data = f"{event}\n\n".encode()
                    self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                if reply.hangs:
                    self.connection.settimeout(0.05)
                    while not scripted.closing.is_set():
                        try:
                            if not self.connection.recv(1):
                                break
                        except TimeoutError:
                            continue
                    scripted.gone.set()
                if reply.breaks_off or reply.hangs:
                    self.close_connection = True
                else:
                    self.wfile.write(b"0\r\n\r\n")

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def says() -> Iterator[Callable[..., ScriptedServer]]:
    """Makes servers of replies."""
    made: list[ScriptedServer] = []

    def make(*replies: Reply) -> ScriptedServer:
        made.append(ScriptedServer(replies))
        return made[-1]

    yield make
    for server in made:
        server.close()


def chat_of(*said: tuple[str, Piece] | str | Image) -> Prompt:
    """Messages, `("user", "Hello")`, then the assistant's, begun with what has no role."""
    pieces: list[Piece] = []
    begun: list[Piece] = [RoleMark("assistant", True)]
    for message in said:
        if isinstance(message, str | Image):
            begun.append(message)
        else:
            role, content = message
            pieces += [RoleMark(role, True), content, RoleMark(role, False)]
    return Prompt.of([*pieces, *begun])


HELLO = chat_of(("system", "You are brief."), ("user", "Which city is the capital of Peru?"))
TEXT = Prompt.of(["The radix tree keeps what was computed, and"])


def gen(backend: ApiBackend, prompt: Prompt = HELLO, **sampling: Any) -> Call:
    return ended(backend, backend.generate("x", prompt, Sampling(**overrides({"max_tokens": 12, **sampling})), Tags()))


def select(
    backend: ApiBackend, choices: Sequence[str], prompt: Prompt = HELLO, method: ChoicesMethod = token_length_normalized
) -> Call:
    return ended(backend, backend.score("x", prompt, choices, method, Tags()))


def ended(backend: ApiBackend, call: Call) -> Call:
    """The call once it has ended."""
    until = time.monotonic() + 60
    while not call.finished:
        assert time.monotonic() < until, "the call never ended"
        backend.step()
    return call


def text_of(call: Call) -> str:
    assert call.error is None
    return call.text
