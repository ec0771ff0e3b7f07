"""What each backend serves, as a table: `python -m lang.backends.features docs/language_backends.md` writes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from lang.backends.anthropic import anthropic_features
from lang.backends.gemini_features import gemini_features
from lang.backends.mock import MockBackend
from lang.backends.openai_features import openai_features
from lang.backends.openai_request import Extensions
from lang.capabilities import Capabilities, Feature

BACKENDS: Mapping[str, Capabilities] = {
    "engine": Capabilities("the engine", {}),
    "mock": MockBackend().capabilities,
    "OpenAI chat": openai_features(chat=True),
    "OpenAI completions": openai_features(chat=False, select="logprobs"),
    "chat, `radixlab`": openai_features(chat=True, extensions=Extensions.RADIXLAB, select="choice"),
    "completions, `radixlab`": openai_features(chat=False, extensions=Extensions.RADIXLAB, select="logprobs"),
    "chat, `vllm`": openai_features(chat=True, extensions=Extensions.VLLM, select="choice"),
    "completions, `vllm`": openai_features(chat=False, extensions=Extensions.VLLM, select="logprobs"),
    "Anthropic": anthropic_features(sampling=False, prefill=False),
    "Anthropic's protocol elsewhere": anthropic_features(sampling=True, prefill=True),
    "Gemini": gemini_features(sampling=False),
    "Gemini up to 2.5": gemini_features(sampling=True),
}


def table(backends: Mapping[str, Capabilities]) -> Iterator[str]:
    """Lines of Markdown: a row for each feature, then a list of what to use instead."""
    yield f"| | {' | '.join(backends)} |"
    yield f"|---|{'---|' * len(backends)}"
    for feature in Feature:
        served = ("–" if feature in backend.missing else "yes" for backend in backends.values())
        yield f"| {feature} | {' | '.join(served)} |"
    yield ""
    for name, backend in backends.items():
        if backend.missing:
            yield f"Instead of what {name} hasn't:"
            yield ""
            yield from (f"- {feature}: {backend.missing[feature]}" for feature in Feature if feature in backend.missing)
            yield ""


_BEGIN = "<!-- What follows is written by lang.backends.features -->"


def written(document: str) -> str:
    """The document with the table as it is now."""
    return "\n".join([document.partition(_BEGIN)[0] + _BEGIN, "", *table(BACKENDS)]).rstrip() + "\n"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text()))
