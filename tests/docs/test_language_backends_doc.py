"""The examples of docs/language_backends.md run as printed, the first on servers that speak the protocols."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lang
from tests.lang.backends.conftest import Reply, ScriptedServer, needs_gemini, says
from tests.lang.backends.test_failures import ANTHROPIC, GEMINI, OPENAI, WHOLE

__all__ = ["says"]
PAGE = Path(__file__).parents[2] / "docs" / "language_backends.md"


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def run(text: str, names: dict[str, Any]) -> None:
    linecache.cache["snippet.py"] = (len(text), None, text.splitlines(keepends=True), "snippet.py")
    exec(compile(text, "snippet.py", "exec", dont_inherit=True), names)


def test_one_program_runs_on_every_backend(
    says: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    snippet, _, one_call = snippets()
    openai, anthropic, local = (says(Reply(body=WHOLE[protocol])) for protocol in (OPENAI, ANTHROPIC, OPENAI))
    for name, server in (("OPENAI", openai), ("ANTHROPIC", anthropic)):
        monkeypatch.setenv(f"{name}_API_KEY", "a key")
        monkeypatch.setenv(f"{name}_BASE_URL", server.url)
    run(snippet.replace("http://127.0.0.1:30000/v1", local.url), {"__name__": "snippet"})
    assert [server.bodies[0]["model"] for server in (openai, anthropic, local)] == [
        "gpt-5.2",
        "claude-opus-5-5",
        "tiny",
    ]
    names: dict[str, Any] = {"sgl": lang}
    run(one_call, names)
    assert names["state"].speculation() == (2, 1, 0)


@needs_gemini
def test_the_same_program_runs_on_gemini(says: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch) -> None:
    first, snippet, _ = snippets()
    server = says(Reply(body=WHOLE[GEMINI]))
    monkeypatch.setenv("GEMINI_API_KEY", "a key")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", server.url)
    names: dict[str, Any] = {"__name__": "snippet"}
    run(first.partition("capital.run(")[0], names)
    run(snippet, names)
    assert "/models/gemini-3.8-flash:" in server.paths[0]
    assert server.bodies[0]["contents"][0]["parts"] == [{"text": "What is the capital of Peru?"}]
