"""The application: the routes, the middleware, and the Runtime that they share. Importing it has no side effects."""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.telemetry import TelemetryConfig
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.assembly import parts
from headrace.producer_api.api_keeper import ApiKeeper
from headrace.producer_api.api_part import ApiPart, ApiWork
from headrace.producer_api.http import health_routes, pages
from headrace.producer_api.http.middleware import Authenticate, BufferBody, MeterWrites, RequestContext
from headrace.producer_api.http.openapi_text import describe
from headrace.producer_api.http.requests import CanonicalPath
from headrace.producer_api.jobs import (
    dead_letter_routes,
    job_routes,
    model_routes,
    quality_routes,
    queue_routes,
    stream_routes,
    version_routes,
)
from headrace.producer_api.organization import key_routes
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import on_error
from headrace.producer_api.tasks.registry import TASK_ROUTES
from headrace.store.errors import HeadraceError
from headrace.store.settings import Settings
from headrace.store.tracing.tracing import OFF, Tracing

_VERSION = version("headrace")
LAYERS = (CanonicalPath, RequestContext, Authenticate, MeterWrites, BufferBody)
_ROUTES = (
    job_routes,
    stream_routes,
    queue_routes,
    dead_letter_routes,
    quality_routes,
    version_routes,  # before the models: a model's name may contain slashes
    model_routes,
    key_routes,
    health_routes,
)
_NO_TELEMETRY: TelemetryConfig = {"auto_configure": False, "tracing": False, "metrics": False, "logs": False}
# Headers of answers that a page of another origin may read.
_FOR_PAGES = (
    "X-Request-Id",
    "X-Job-Id",
    "X-Model-Version",
    "Location",
    "Retry-After",
    "Headrace-Warning",
    "Headrace-Truncated",
    "X-Cache",
)
_DESCRIPTION = """
Asynchronous inference. Submit a job, then poll it, wait for it, follow its stream, or be called when it ends.
Programs written for OpenAI's chat completions work with another base URL.

Every request under `/v1/` needs `Authorization: Bearer hr_...`. Every error has the same body,
`{"error": {"message", "type", "param", "code"}}`.
"""


class Application(FastAPI):
    """FastAPI inside our middleware. FastAPI's own ``add_middleware`` would put it behind four layers of its own."""

    def __init__(self, runtime: Runtime, **options: Any) -> None:
        # A redirect to the path without the last slash would go to the host that the request names, with the body.
        # FastAPI's own telemetry would record the messages of refused requests, which quote their bodies.
        super().__init__(redirect_slashes=False, telemetry=_NO_TELEMETRY, **options)
        self._describing = threading.Lock()
        self.state.runtime = runtime
        self._front: ASGIApp = super().__call__
        for layer in reversed(LAYERS):
            self._front = layer(self._front, runtime=runtime)
        if origins := runtime.settings.cors_origins:
            # Without credentials: a key is in a header that a page sets itself, never in a cookie.
            self._front = CORSMiddleware(
                self._front,
                allow_origins=origins,
                allow_methods=("GET", "POST", "PUT", "PATCH", "DELETE"),
                allow_headers=("*",),
                expose_headers=_FOR_PAGES,
            )

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document with the texts of ``openapi_text``. It is made once, in about a second."""
        with self._describing:
            if self.openapi_schema is None:
                self.openapi_schema = describe(super().openapi())
            return self.openapi_schema

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or start and stop."""
        scope["app"] = self
        await self._front(scope, receive, send)


@asynccontextmanager
async def _lifespan(runtime: Runtime, features: Sequence[ApiWork], _app: FastAPI) -> AsyncIterator[None]:
    keeper = ApiKeeper(runtime, [duties for work in features for duties in work.duties])
    await runtime.start()
    for work in features:
        work.start()
    keeper.start()
    try:
        yield
    finally:
        runtime.draining.set()
        await run_in_threadpool(keeper.stop)
        for work in features:
            await run_in_threadpool(work.stop)
        await runtime.stop()


def create_app(settings: Settings, tracing: Tracing = OFF) -> FastAPI:
    """Return the application for these settings; connections are opened when it starts, not here."""
    runtime = Runtime(settings, tracing)
    api_parts = parts("api", ApiPart)
    works = {part.work: part.work(runtime) for part in api_parts if part.work is not None}
    with_docs = "docs" in settings.open_pages
    app = Application(
        runtime,
        title="Headrace",
        version=_VERSION,
        description=_DESCRIPTION,
        lifespan=partial(_lifespan, runtime, [*works.values()]),
        # FastAPI's page loads its scripts from another server, and it makes the document on the event loop. Ours are
        # in ``pages``.
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        exception_handlers=dict.fromkeys((HeadraceError, RequestValidationError, HTTPException, Exception), on_error),
    )
    # FastAPI would have made a route of it. An unknown route's error says where the routes are listed.
    app.openapi_url = "/openapi.json" if with_docs else None
    app.state.works = works
    for router in (router for task in TASK_ROUTES for router in task.routers):
        # The routes themselves: include_router builds each route again, for every application.
        app.router.routes.extend(router.routes)
    for routes in _ROUTES:
        app.router.routes.extend(routes.router.routes)
    for router in (router for part in api_parts for router in part.routers):
        app.router.routes.extend(router.routes)
    app.router.routes.extend(pages.routes(with_docs=with_docs))
    for part in api_parts:
        app.router.routes.extend(part.pages(settings))
    return app
