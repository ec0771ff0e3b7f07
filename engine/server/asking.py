"""What every request of OpenAI's form goes through, and what every answer to one begins with."""

from __future__ import annotations

import itertools
import secrets
import time
from typing import Any

from fastapi import Request

from engine.server.errors import ApiError
from engine.server.fields import RequestFields
from engine.server.state import ServerState

_PROCESS = secrets.token_hex(6)
_NUMBER = itertools.count()


def check(state: ServerState, body: RequestFields) -> None:
    """Raises ApiError for a model that isn't served and for fields that don't go together."""
    if body.model != state.model_name:
        told = f"the model {body.model!r:.100} is not served; this server has {state.model_name!r}"
        raise ApiError(404, told, param="model", code="model_not_found")
    check_samples(state, body.n)
    if body.stream_options is not None and not body.stream:
        told = "stream_options says how to stream: set stream to true, or leave it out"
        raise ApiError(400, told, param="stream_options", code="invalid_value")


def check_samples(state: ServerState, n: int | None) -> None:
    if n is not None and n > state.config.max_n:
        told = f"n={n} samples of a prompt are too many: at most {state.config.max_n} are allowed"
        raise ApiError(400, told, param="n", code="invalid_value")


def options(request: Request, body: RequestFields) -> dict[str, Any]:
    """Those of `Service.generate`."""
    return {"client": body.user or "", "priority": body.priority or 0, "timeout": body.timeout}


def wants_usage(body: RequestFields) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)


def room(state: ServerState, n_prompt: int) -> int:
    """Output tokens for which a prompt of so many leaves room; 0 where it is too long itself."""
    limit = min(state.service.max_context, state.service.engine.capacity_tokens)
    return max(0, limit - n_prompt)


def new_id() -> str:
    """Unlike any other answer's; no secret."""
    return f"{_PROCESS}{next(_NUMBER):012x}"


def head(kind: str, prefix: str, model: str) -> dict[str, Any]:
    """What an answer, and each chunk of a streamed one, begins with."""
    return {"id": f"{prefix}-{new_id()}", "object": kind, "created": int(time.time()), "model": model}
