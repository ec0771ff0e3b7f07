"""From the language's parameters to the fields of OpenAI's requests, and what servers like it take besides."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

from lang.sampling import Sampling
from lang.tools import CHOICES, Tool


class Extensions(enum.StrEnum):
    """Servers whose requests have fields that OpenAI's haven't. The client sends them as `extra_body`."""

    RADIXLAB = "radixlab"
    VLLM = "vllm"

    def constraint(self, kind: str, value: Any) -> dict[str, Any]:
        """kind: regex, json_schema or choice."""
        if self is Extensions.VLLM:  # since 0.12
            return {"structured_outputs": {"json" if kind == "json_schema" else kind: value}}
        return {kind: value}

    def sampling(self, sampling: Sampling) -> dict[str, Any]:
        """All of them, told or not: a server may have defaults of its own for a model."""
        off = -1 if self is Extensions.VLLM else 0
        fields: dict[str, Any] = {
            "top_k": sampling.top_k or off,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "min_tokens": sampling.min_tokens,
            "ignore_eos": sampling.ignore_eos,
        }
        if sampling.stop_token_ids:
            fields["stop_token_ids"] = list(sampling.stop_token_ids)
        return fields


def sampled(sampling: Sampling, *, chat: bool, hosted: bool) -> dict[str, Any]:
    """The fields that both endpoints have. hosted: by OpenAI, some of whose models refuse even default values."""
    fields: dict[str, Any] = {
        "max_completion_tokens" if chat and hosted else "max_tokens": sampling.max_tokens,
        "n": sampling.n if sampling.n > 1 else None,
        "temperature": sampling.temperature if sampling.temperature != 1 or not hosted else None,
        "top_p": sampling.top_p if sampling.top_p != 1 or not hosted else None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
    }
    return {name: value for name, value in fields.items() if value is not None}


def response_format(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Strict, since a schema that may be ignored would be none."""
    return {"type": "json_schema", "json_schema": {"name": name, "schema": schema, "strict": True}}


def offered(tools: Sequence[Tool], choice: str) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": choice}}
    return {"tools": [tool.as_data() for tool in tools], "tool_choice": choice if choice in CHOICES else named}
