"""The web application: endpoints, what stands before them, and errors as answers."""

from __future__ import annotations

import importlib

from fastapi import FastAPI

from engine.server import answers, openapi
from engine.server.state import ServerState

ENDPOINTS = ("operations", "completions", "chat_completions", "native", "messages")
"""Modules beside this one; each offers `make_router(state)`."""


def make_app(state: ServerState) -> FastAPI:
    app = FastAPI(title="radixlab", docs_url=None, redoc_url=None)
    answers.install(app)
    openapi.describe(app)
    for name in ENDPOINTS:
        try:
            module = importlib.import_module(f"engine.server.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"engine.server.{name}":
                raise
            continue
        app.include_router(module.make_router(state))
    return app
