"""What those who run the server ask of it: is it well, what does it serve, what was counted, what is in its cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from engine.server.engine_thread import EngineDead
from engine.server.errors import ApiError
from engine.server.service import own_namespaces
from engine.server.state import ServerState
from engine.server.tree_view import Order, tree_view

T = TypeVar("T")

_ENGINE_TIMEOUT = 30.0
"""Seconds to wait for the engine between two steps."""


def make_router(state: ServerState) -> APIRouter:
    router = APIRouter(tags=["operations"])
    service = state.service

    async def between_steps(ask: Callable[[], T]) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(service.thread.call(ask)), _ENGINE_TIMEOUT)
        except EngineDead:
            raise ApiError(503, "the engine has stopped", code="engine_dead") from None
        except TimeoutError:
            told = f"the engine was busy with one step for {_ENGINE_TIMEOUT:.0f} s"
            raise ApiError(503, told, code="busy", retry_after=_ENGINE_TIMEOUT) from None

    def model() -> dict[str, Any]:
        return {
            "id": state.model_name,
            "object": "model",
            "created": state.created,
            "owned_by": "radixlab",
            "max_model_len": service.max_context,
        }

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model()]}

    @router.get("/v1/models/{name:path}")
    async def model_named(name: str) -> dict[str, Any]:
        if name != state.model_name:
            told = f"the model {name!r:.100} is not served; this server has {state.model_name!r}"
            raise ApiError(404, told, param="model", code="model_not_found")
        return model()

    @router.get("/health")
    async def health() -> dict[str, str]:
        """The process lives."""
        return {"status": "ok"}

    @router.get("/ready")
    async def ready(response: Response) -> dict[str, str]:
        """Requests are taken: the engine lives, and the server isn't stopping."""
        if service.ready:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": "stopping" if service.thread.alive else "the engine is dead"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/flush_cache")
    async def flush_cache() -> dict[str, int]:
        """Forgets every cached prefix that no request under way uses."""

        def flush() -> dict[str, int]:
            cache = service.engine.memory.cache
            before = cache.cached_tokens
            service.engine.flush_cache()
            return {"flushed_tokens": before - cache.cached_tokens, "cached_tokens": cache.cached_tokens}

        return await between_steps(flush)

    @router.get("/cache")
    async def cache(
        order: Order = "largest",
        limit: int = Query(20, ge=0, le=1000),
        preview: bool = False,
    ) -> dict[str, Any]:
        """The state of the tree. `preview`: with the text that each node begins with.

        Where clients are isolated, each sees its own nodes.
        """
        within = own_namespaces() if state.config.isolate_clients else ""
        view = partial(tree_view, service.engine, order=order, limit=limit, preview=preview, within=within)
        return await between_steps(view)

    return router
