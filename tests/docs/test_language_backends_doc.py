"""The examples of docs/language_backends.md run as printed, the first on servers that speak the protocols."""

from __future__ import annotations

import linecache
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lang.backends.conftest import Reply, ScriptedServer, says
from tests.lang.backends.test_failures import ANTHROPIC, OPENAI, WHOLE

__all__ = ["says"]
PAGE = Path(__file__).parents[2] / "docs" / "language_backends.md"


def test_one_program_runs_on_every_backend(
    says: Callable[..., ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    snippet, one_call = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    openai, anthropic, local = (says(Reply(body=WHOLE[protocol])) for protocol in (OPENAI, ANTHROPIC, OPENAI))
    for name, server in (("OPENAI", openai), ("ANTHROPIC", anthropic)):
        monkeypatch.setenv(f"{name}_API_KEY", "a key")
        monkeypatch.setenv(f"{name}_BASE_URL", server.url)
    names: dict[str, Any] = {"__name__": "snippet"}
    text = snippet.replace("http://127.0.0.1:30000/v1", local.url)
    linecache.cache["snippet.py"] = (len(text), None, text.splitlines(keepends=True), "snippet.py")
    exec(compile(text, "snippet.py", "exec", dont_inherit=True), names)
    assert [server.bodies[0]["model"] for server in (openai, anthropic, local)] == [
        "gpt-5.2",
        "claude-opus-5-5",
        "tiny",
    ]
    exec(compile(one_call, "one_call.py", "exec", dont_inherit=True), names)
    assert names["state"].speculation() == (2, 1, 0)
