"""The web application: endpoints, what stands before them, and errors as answers."""

from __future__ import annotations

from collections.abc import Collection

from fastapi import FastAPI

from engine.server import answers, chat_completions, completions, messages, native, openapi, operations
from engine.server.auth import ApiKeys
from engine.server.gate import Gate
from engine.server.state import ServerState


def make_app(state: ServerState, *, keys: ApiKeys | None = None, hosts: Collection[str] | None = None) -> FastAPI:
    """keys: who may ask; None: everybody. hosts: see `Gate`."""
    app = FastAPI(title="radixlab", docs_url=None, redoc_url=None)
    answers.install(app)
    openapi.describe(app)
    for endpoints in (completions, chat_completions, messages, native, operations):
        app.include_router(endpoints.make_router(state))
    app.add_middleware(
        Gate,
        config=state.config,
        keys=keys or ApiKeys(()),
        metrics=state.service.metrics,
        hosts=hosts,
    )
    return app
