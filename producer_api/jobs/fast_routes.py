"""Fast path around FastAPI for the three most frequent requests: submit a job, read a job, stream a job.

FastAPI's dependency resolution was most of the cost of these requests. Here the parameters of common requests are
parsed by hand, and the same route functions are called. All other requests (another query, a missing scope, a body that
is not JSON) go to FastAPI. Both paths make validation errors with ``errors.from_validation``.
"""

import re

import orjson
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.producer_api.access.auth import may
from headrace.producer_api.http.middleware import BufferedBody
from headrace.producer_api.http.requests import MAX_PROJECT_CHARS, read_origin, read_origin_headers
from headrace.producer_api.jobs import job_routes, stream_routes
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import from_validation, respond
from headrace.producer_api.submission.cache_lookup import ASK_HEADER
from headrace.store.tasks.flow import JobOrFlowRequest

_JOB_REQUEST: TypeAdapter[JobOrFlowRequest] = TypeAdapter(JobOrFlowRequest)
_ROUTES = {getattr(route, "name", ""): route for route in (*job_routes.router.routes, *stream_routes.router.routes)}
_SUBMIT, _GET_JOB, _STREAM = _ROUTES["create_job"], _ROUTES["get_job"], _ROUTES["stream_events"]
_JOB = re.compile(r"/v1/jobs/([^/]+?)(/events)?")
_WAIT = re.compile(rb"wait=(\d{1,4})")


class FastRoutes:
    """ASGI middleware: answers these requests and passes on all others."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = None
        if scope["type"] == "http":
            if scope["method"] == "GET":
                response = await self._read(Request(scope, receive))
            elif scope["method"] == "POST" and scope["path"] == "/v1/jobs":
                request = Request(scope, receive)
                response = await self._submit(request)
                if response is None:
                    receive = BufferedBody(await request.body(), receive)
        await (response or self.app)(scope, receive, send)

    async def _read(self, request: Request) -> Response | None:
        found = _JOB.fullmatch(request.scope["path"])
        if found is None or not may(request.state.principal, "jobs:read"):
            return None
        return await (self._get_job if found[2] is None else self._stream)(request, found[1])

    async def _get_job(self, request: Request, job_id: str) -> Response | None:
        query = request.scope["query_string"]
        wait = _WAIT.fullmatch(query)
        if query and wait is None:
            return None
        request.scope["route"] = _GET_JOB
        wait_s = 0.0 if wait is None else float(wait[1])
        return await job_routes.get_job(request, self._runtime, request.state.principal, job_id, wait_s)

    async def _stream(self, request: Request, job_id: str) -> Response | None:
        if request.scope["query_string"]:
            return None
        request.scope["route"] = _STREAM
        last_id = request.headers.get("last-event-id")
        return await stream_routes.stream_events(request, self._runtime, request.state.principal, job_id, last_id)

    async def _submit(self, request: Request) -> Response | None:
        headers, principal = request.headers, request.state.principal
        usual = not request.scope["query_string"] and headers.get("content-type") == "application/json"
        project = headers.get("openai-project")
        if not (usual and may(principal, "jobs:write") and len(project or "") <= MAX_PROJECT_CHARS):
            return None
        try:
            body = _JOB_REQUEST.validate_python(orjson.loads(await request.body()))
        except orjson.JSONDecodeError:
            return None
        except ValidationError as error:
            # Same answer as FastAPI, without validating twice.
            request.scope["route"] = _SUBMIT
            complaints = error.errors(include_url=False, include_input=False)
            return respond(from_validation(complaints), request.scope)
        request.scope["route"] = _SUBMIT
        key, retry_count = headers.get("idempotency-key"), headers.get("x-stainless-retry-count")
        origin = await read_origin(
            request, await read_origin_headers(request, key, retry_count, project, headers.get(ASK_HEADER))
        )
        return await job_routes.create_job(request, self._runtime, principal, body, origin, headers.get("prefer"))
