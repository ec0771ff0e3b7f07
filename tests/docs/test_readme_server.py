"""What README.md and docs/server.md show of the server is run as printed against the server that they start."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.server import message_models, native_models, refused
from engine.server.chat_models import ChatRequest
from engine.server.config import ServerConfig
from engine.server.openai_models import CompletionRequest

ROOT = Path(__file__).resolve().parents[2]
PAGES = {name: (ROOT / name).read_text() for name in ("README.md", "docs/server.md")}
ADDRESS = "http://127.0.0.1:8000"


def snippets(page: str, language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [text for text in found if ADDRESS in text or "engine.server" in text]


def commands(page: str, program: str) -> list[list[str]]:
    lines = [line for text in snippets(page, "sh") for line in text.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True)) and words[0] == program]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the server that README.md's command starts, on a port that is free."""
    python, dash_m, *words = commands("README.md", "python")[0]
    assert (python, dash_m) == ("python", "-m")
    server = subprocess.Popen(
        [sys.executable, "-m", *words, "port=0"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    first = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", first)
    assert found is not None, f"the server said {first!r}"
    threading.Thread(target=server.stdout.read, daemon=True).start()
    yield found.group()
    server.terminate()
    assert server.wait(timeout=60) == 0


@pytest.fixture
def only_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is asked: a library that looks for updates or prices fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, to: Any) -> None:
        assert not isinstance(to, tuple) or to[0] in ("127.0.0.1", "::1"), f"{to} was to be asked"
        connect(self, to)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")


@pytest.mark.parametrize("page", PAGES)
def test_each_page_shows_how_to_start_and_how_to_ask(page: str) -> None:
    assert commands(page, "python")
    assert commands(page, "curl")
    assert snippets(page, "python")


@pytest.mark.parametrize(
    "words", [words for page in PAGES for words in commands(page, "curl")], ids=lambda words: " ".join(words[1:])[:100]
)
def test_each_curl_command_is_answered(words: list[str], address: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    asked = [word.replace(ADDRESS, address) for word in words]
    done = subprocess.run([*asked, "--silent", "--fail-with-body"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout[:20]
    assert done.stdout.startswith(("{", "[", "# HELP", "data: "))


@pytest.mark.parametrize(
    "text",
    [text for page in PAGES for text in snippets(page, "python")],
    ids=lambda text: next(line for line in text.splitlines() if "import" in line and "typing" not in line),
)
def test_each_python_snippet_runs_as_printed(
    text: str, address: str, only_this_machine: None, capsys: pytest.CaptureFixture[str]
) -> None:
    names: dict[str, object] = {"__name__": "snippet"}
    exec(compile(text.replace(ADDRESS, address), "snippet", "exec", dont_inherit=True), names)
    assert capsys.readouterr().out.strip(), "it prints nothing"


def test_a_choice_is_one_of_the_choices(address: str) -> None:
    """The second curl command of README.md says so."""
    import urllib.request

    (words,) = [words for words in commands("README.md", "curl") if "choice" in words[-1]]
    body = json.loads(words[-1])
    request = urllib.request.Request(
        words[1].replace(ADDRESS, address), json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["text"] in body["choice"]


def test_the_guide_names_every_parameter_that_is_served_or_refused() -> None:
    served = [CompletionRequest, ChatRequest, native_models.GenerateRequest, native_models.NativeSampling]
    models = [*served, message_models.MessagesRequest, native_models.TokenizeRequest, native_models.DetokenizeRequest]
    names = {name for model in models for name in model.model_fields}
    for table in (refused.COMPLETIONS, refused.CHAT, refused.NATIVE, message_models.MESSAGES):
        names |= table.keys()
    missing = sorted(name for name in names if f"`{name}`" not in PAGES["docs/server.md"])
    assert not missing


def test_the_guide_names_every_setting_of_the_server() -> None:
    missing = sorted(name for name in ServerConfig.__dataclass_fields__ if f"`{name}" not in PAGES["docs/server.md"])
    assert missing in ([], ["model_name"])  # it is set as `served_name`
