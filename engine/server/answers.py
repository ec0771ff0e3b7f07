"""Errors as answers: each family of endpoints has its own shape, and none shows what happened inside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from engine.server.errors import ApiError, unexpected

ANTHROPIC_PATHS = ("/v1/messages",)
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """What the endpoint at `path` says: Anthropic's shape or OpenAI's."""
    message = _encodable(error.message)
    param = None if error.param is None else _encodable(error.param)
    if path.startswith(ANTHROPIC_PATHS):
        kind = _ANTHROPIC_TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
        if param is not None and param not in message:  # this shape has no field for it
            message = f"{param}: {message}"
        return {"type": "error", "error": {"type": kind, "message": message}}
    return {"error": {"message": message, "type": error.type, "param": param, "code": error.code}}


def _encodable(text: str) -> str:
    """Half characters, which a client may have sent, have no UTF-8."""
    return text.encode(errors="replace").decode()


def error_answer(error: ApiError, path: str) -> JSONResponse:
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is of no use
    return JSONResponse(error_body(error, path), error.status, headers)


def invalid(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """400 for what pydantic found; `problems` as its `errors()` gives them. The first one is named, the rest told."""
    if problems[0]["type"] == "json_invalid":
        reason = problems[0].get("ctx", {}).get("error", "it can't be parsed")
        return ApiError(400, f"the body is not JSON: {reason}", code="invalid_json")
    named = list(dict.fromkeys((_field(problem), _told(problem)) for problem in problems))
    message = "; ".join(f"{field}: {told}" if field else told for field, told in named[:3])
    unknown = problems[0]["type"] == "extra_forbidden"
    code = "unknown_parameter" if unknown else "invalid_value"
    return ApiError(400, message, param=named[0][0], code=code)


def _field(problem: Mapping[str, Any]) -> str | None:
    """`messages.0.content`: where in the request, without the names of alternatives that pydantic tried."""
    path = [str(part) for part in problem["loc"] if part not in ("body", "query", "path")]
    kept = [part for part in path if (part.isidentifier() and part[0].islower()) or part.isdigit()]
    return ".".join(kept) or None


def _told(problem: Mapping[str, Any]) -> str:
    match problem["type"]:
        case "missing":
            return "is required" if _field(problem) else "a JSON object is required as the body"
        case "extra_forbidden":
            return "is not a parameter of this endpoint; take it out"
    given = "" if isinstance(problem.get("input"), dict | list) else f", not {problem.get('input')!r:.80}"
    return problem["msg"].removeprefix("Value error, ") + given


def install(app: FastAPI) -> None:
    """Every error of the app becomes an answer of its endpoint's family."""

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return error_answer(error, request.url.path)

    async def validation(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_answer(invalid(error.errors()), request.url.path)

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        path = request.url.path
        match error.status_code:
            case 404:
                told = ApiError(404, f"there is no {path} here", code="not_found")
            case 405:
                allowed = (error.headers or {}).get("Allow", "another method")
                told = ApiError(405, f"{request.method} {path} is not served; use {allowed}", code="method_not_allowed")
            case status:
                told = ApiError(status, str(error.detail))
        answer = error_answer(told, path)
        answer.headers.update(error.headers or {})
        return answer

    async def anything_else(request: Request, error: Exception) -> JSONResponse:
        return error_answer(unexpected(), request.url.path)

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(RequestValidationError, validation)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, anything_else)
