"""From the language's prompts and parameters to the fields of Gemini's requests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lang.backends.chat import Turns
from lang.backends.gemini_features import NAME
from lang.capabilities import NotServed
from lang.prompt import Image, Message
from lang.sampling import Sampling
from lang.tools import CHOICES, Tool

_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}


def asked(said: Turns) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The contents, and the system's field of the config. Raises NotServed for a system message among the others."""
    n = next(i for i, message in enumerate(said.messages) if message.role != "system")
    if any(message.role == "system" for message in said.messages[n:]):
        raise NotServed(
            f"system(...) after other messages isn't served by {NAME}: put it before them, or inside user(...)"
        )
    system = [part for message in said.messages[:n] for part in _parts(message)]
    contents = [
        {"role": "model" if message.role == "assistant" else "user", "parts": _parts(message)}
        for message in said.messages[n:]
    ]
    return contents, {"system_instruction": {"parts": system}} if system else {}


def sampled(sampling: Sampling, *, served: bool) -> dict[str, Any]:
    """served: the model takes such fields. It has defaults of its own, so temperature and top_p are sent always then.

    Raises NotServed for values that would be ignored.
    """
    default = Sampling()
    if not served:
        for name in ("temperature", "top_p"):
            if (value := getattr(sampling, name)) != getattr(default, name):
                raise NotServed(
                    f"gen({name}={value}) isn't served by {NAME}: models ignore it since version 3.6; leave it out, or "
                    "make the backend with sampling=True for a model that takes it"
                )
    fields: dict[str, Any] = {"seed": sampling.seed, "stop_sequences": list(sampling.stop) or None}
    if served:
        fields |= {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or None,
            "presence_penalty": sampling.presence_penalty or None,
            "frequency_penalty": sampling.frequency_penalty or None,
            "candidate_count": sampling.n if sampling.n > 1 else None,
        }
    if sampling.logprobs is not None:
        fields |= {"response_logprobs": True, "logprobs": sampling.logprobs or None}
    return {name: value for name, value in fields.items() if value is not None}


def held_to(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"response_mime_type": "application/json", "response_json_schema": schema}


def offered(tools: Sequence[Tool], choice: str) -> dict[str, Any]:
    told = [
        {"name": tool.name, "description": tool.description, "parameters_json_schema": json.loads(tool.parameters)}
        for tool in tools
    ]
    calling = {"mode": _MODES[choice]} if choice in CHOICES else {"mode": "ANY", "allowed_function_names": [choice]}
    return {"tools": [{"function_declarations": told}], "tool_config": {"function_calling_config": calling}}


def _parts(message: Message) -> list[dict[str, Any]]:
    return [_part(part) for part in message.content]


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, str):
        return {"text": part}
    return {"inline_data": {"data": part.data, "mime_type": part.media_type}}
