"""Health, metrics and version of the process. These routes need no API key."""

import asyncio
import platform
from importlib.metadata import version

import structlog
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from producer_api.http.requests import RuntimeOf
from producer_api.http.views import ObjectResponse
from producer_api.runtime import Runtime
from producer_api.server.errors import Draining, ErrorBody, body_of, respond
from producer_api.server.health import OK
from store.errors import HeadraceError, Unavailable
from store.metrics.registry import CONTENT_TYPE
from store.scheduling.backlog import TenantBacklog, read_backlog

router = APIRouter(tags=["health"])

_log = structlog.get_logger("producer_api")
_VERSION = version("headrace")
_READ_S = 2.0


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> Response:
    """Answer from the event loop, without any other service."""
    return ObjectResponse({"status": "ok"})


@router.get(
    "/health",
    responses={503: {"model": ErrorBody, "description": "As of `/readyz`"}},
    summary="The same as /readyz, by the name that inference servers use",
)
@router.get(
    "/readyz",
    responses={503: {"model": ErrorBody, "description": "Not ready; the failed checks stand beside the error"}},
    summary="Can the process do its work",
)
async def readyz(request: Request, runtime: RuntimeOf) -> Response:
    """Answer 200 if Postgres answers and is migrated. Without Redis, jobs are accepted and polled, and streams go on
    more slowly: `status` is `degraded` then, and the failed check has the reason."""
    report = await runtime.health.report()
    streams = OK if runtime.hub.is_connected else "not connected to Redis: they look for news once a second"
    checks = {"postgres": report.postgres, "redis": report.redis, "streams": streams}
    refusal: HeadraceError | None = None
    if runtime.draining.is_set():
        refusal = Draining("this server is stopping")
    elif not report.is_ready:
        refusal = Unavailable(report.postgres, code="database_unavailable")
    if refusal is None:
        status = "ready" if all(found == OK for found in checks.values()) else "degraded"
        return ObjectResponse({"status": status, **checks})
    answer = respond(refusal, request.scope)
    content = {"status": "not ready", **checks, **body_of(refusal)}
    return ObjectResponse(
        content, status_code=answer.status_code, headers={"Retry-After": answer.headers["Retry-After"]}
    )


@router.get("/metrics", response_class=PlainTextResponse, summary="Metrics for Prometheus")
async def metrics(runtime: RuntimeOf) -> Response:
    """Return the counters; queue depths are left out while Postgres is away or slow."""
    _require_open("metrics", runtime)
    return Response(runtime.metrics.render(await _shares(runtime)), media_type=CONTENT_TYPE)


def _require_open(page: str, runtime: Runtime) -> None:
    if page not in runtime.settings.open_pages:
        raise HTTPException(404)  # as if there were no such route


async def _shares(runtime: Runtime) -> tuple[TenantBacklog, ...] | None:
    """Return the backlog; None if Postgres does not give it within ``_READ_S``, so that the other series are kept."""
    reading = asyncio.ensure_future(run_in_threadpool(_read_shares, runtime))
    done, _ = await asyncio.wait([reading], timeout=_READ_S)
    return reading.result() if done else None


def _read_shares(runtime: Runtime) -> tuple[TenantBacklog, ...] | None:
    try:
        return read_backlog(runtime.db).computed
    except Unavailable as error:
        _log.warning("queue_depths_unknown", reason=error.message)
        return None


@router.get("/version", summary="Which version this is")
async def show_version(runtime: RuntimeOf) -> Response:
    """Return the versions of Headrace and Python."""
    _require_open("version", runtime)
    return ObjectResponse({"name": "headrace", "version": _VERSION, "python": platform.python_version()})
