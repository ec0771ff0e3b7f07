"""Requests made from the server's own OpenAPI document, right and wrong ones: each is answered as the document says.

RADIXLAB_OPENAPI_EXAMPLES: how many an operation, instead of 40.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from engine.config import EngineConfig
from engine.server.config import ServerConfig
from tests.engine.server.conftest import LiveServer, serve

EXAMPLES = int(os.environ.get("RADIXLAB_OPENAPI_EXAMPLES", "40"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
LENGTHS = ("max_tokens", "max_completion_tokens", "max_new_tokens")
FEW = 8
"""Output tokens of an example: more would say no more."""


@pytest.fixture(scope="module")
def server() -> Iterator[LiveServer]:
    engine = EngineConfig(model="tiny", device="cpu", pool_tokens=8192, max_context=256)
    with serve(ServerConfig(port=0, max_n=4, max_prompts=4), engine) as server:
        yield server


@pytest.fixture(scope="module")
def document(server: LiveServer) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(server.base_url + "/openapi.json")


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def shorten(body: object) -> None:
    """Most examples name some other model, or millions of tokens, or no time: they would all end in one refusal."""
    if not isinstance(body, dict):
        return
    if isinstance(body.get("model"), str) and len(body["model"]) % 4:
        body["model"] = "tiny"
    for part in (body, body.get("sampling_params")):
        if isinstance(part, dict):
            for name in LENGTHS:
                if type(part.get(name)) is int and part[name] > FEW:
                    part[name] = FEW
    if isinstance(body.get("timeout"), float | int):
        body["timeout"] = 60.0


def test_every_answer_is_as_documented(
    document: schemathesis.BaseSchema, session: requests.Session, subtests: pytest.Subtests
) -> None:
    for operation in (found.ok() for found in document.get_all_operations()):
        right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(case=right | wrong)
        def ask(case: schemathesis.Case) -> None:
            shorten(case.body)
            case.call_and_validate(session=session, checks=CHECKS)

        with subtests.test(operation.label):
            ask()


def test_the_server_is_in_order_after_all_that(server: LiveServer) -> None:
    """Runs last in this module."""
    thread = server.state.service.thread
    assert thread.alive
    thread.call(thread.engine.check).result(timeout=10)


def test_the_document_names_every_endpoint(document: schemathesis.BaseSchema) -> None:
    served = {operation.ok().path for operation in document.get_all_operations()}
    assert served >= {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/messages",
        "/generate",
        "/tokenize",
        "/detokenize",
        "/flush_cache",
        "/cache",
        "/health",
        "/ready",
        "/metrics",
    }
