"""Health, metrics and version of the process. These routes need no API key."""

import platform
from importlib.metadata import version
from ipaddress import ip_address

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from headrace.producer_api.access.auth import address_of
from headrace.producer_api.http.requests import RuntimeOf
from headrace.producer_api.http.views import ObjectResponse
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import Draining, ErrorBody, body_of, respond
from headrace.producer_api.server.health import OK
from headrace.store.errors import HeadraceError, Unavailable
from headrace.store.metrics.registry import CONTENT_TYPE

router = APIRouter(tags=["health"])

_VERSION = version("headrace")


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
async def metrics(request: Request, runtime: RuntimeOf) -> Response:
    """Return the counters, at most a second old; queue depths are left out while Postgres is away or slow.

    Without `metrics` in `HEADRACE_OPEN_PAGES` only callers of the same machine get them.
    """
    if not _is_local(request):
        _require_open("metrics", runtime)
    return Response(await runtime.metrics_page.read(), media_type=CONTENT_TYPE)


def _is_local(request: Request) -> bool:
    """Return True for a caller on this machine, and not for one behind a proxy on it."""
    address = address_of(request.scope)
    is_forwarded = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "x-real-ip"))
    return address is not None and ip_address(address).is_loopback and not is_forwarded


def _require_open(page: str, runtime: Runtime) -> None:
    if page not in runtime.settings.open_pages:
        raise HTTPException(404)  # as if there were no such route


@router.get("/version", summary="Which version this is")
async def show_version(runtime: RuntimeOf) -> Response:
    """Return the versions of Headrace and Python."""
    _require_open("version", runtime)
    return ObjectResponse({"name": "headrace", "version": _VERSION, "python": platform.python_version()})
