"""The OpenAPI document: what FastAPI can't know, since errors and streams are written without its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from engine.server.answers import ANTHROPIC_PATHS


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """What was given, what is allowed, what to do."""

    error: ErrorDetail


class MessagesErrorDetail(BaseModel):
    type: str
    message: str


class MessagesErrorAnswer(BaseModel):
    """The same in Anthropic's shape."""

    type: str
    error: MessagesErrorDetail


_PLACE = "#/components/schemas/{model}"


def describe(app: FastAPI) -> None:
    """Sets what the app says of itself: each operation with its errors, in the shape of its family, and its stream."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _complete(made)
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]


def _complete(document: dict[str, Any]) -> None:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (ErrorAnswer, MessagesErrorAnswer):
        described = model.model_json_schema(ref_template=_PLACE)
        schemas.update(described.pop("$defs"))
        schemas[model.__name__] = described
    for path, operation in _operations(document):
        model = MessagesErrorAnswer if path.startswith(ANTHROPIC_PATHS) else ErrorAnswer
        content = {"application/json": {"schema": {"$ref": _PLACE.format(model=model.__name__)}}}
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's own; a bad request is a 400 here
        responses.setdefault("4XX", {"description": "The request can't be served as it is.", "content": content})
        responses.setdefault("5XX", {"description": "The server can't serve it now.", "content": content})
        if "stream" in _body(document, operation).get("properties", {}):
            responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            yield path, operation


def _body(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of the operation's JSON body; empty where it has none."""
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").removeprefix(_PLACE.format(model=""))
    found: Mapping[str, Any] = document["components"]["schemas"][name] if name else schema
    return found
