"""The middleware of every request, as plain ASGI: request id, latency, authentication, rate limits, body, errors.

    CanonicalPath ─▶ RequestContext ─▶ Authenticate ─▶ MeterWrites ─▶ BufferBody ─▶ the routes

``CanonicalPath`` is in ``paths``. Before all of them stands Starlette's CORS, if the settings name origins.

Starlette's own middleware makes a task for each request. That costs more than the rest of a submission, and hides a
client's disconnect.
"""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress

import structlog
from cachetools import TLRUCache
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headrace.producer_api.access.auth import address_of
from headrace.producer_api.access.rate_limits import OverRate, begin_headers, has_spent_request
from headrace.producer_api.http.requests import RouteTable, check_counts, decompress, has_gzip, plain_json
from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import Draining, SlowBody, form_of, internal_error, respond
from headrace.producer_api.server.request_spans import RequestTrace
from headrace.producer_api.server.sse import StreamAborted
from headrace.store.audit_log import bind_caller
from headrace.store.errors import HeadraceError, InvalidRequest, TooLarge
from headrace.store.ids import new_id
from headrace.store.tasks.registry import TASKS
from headrace.store.tenants.api_keys import Principal

_log = structlog.get_logger("headrace.producer_api")

_HAS_BODY = frozenset({"POST", "PUT", "PATCH"})
_WRITES = _HAS_BODY | {"DELETE"}
_SUBMISSIONS = frozenset({"/v1/jobs", *(url for task in TASKS.values() for url in task.urls)})
_MAX_REFUSE_S = 1.0
_MAX_KEYS = 10_000
# Their routes read the body block by block.
_FILES = "/v1/files"
_PART = re.compile(r"/v1/uploads/[^/]+/parts")
MOST_PART_BYTES = 64 << 20
"""The most bytes of one part of an upload."""

# A form has a few fields beside the file.
_FORM_BYTES = 64 << 10
_WITH_MANY_TEXTS = tuple(url for task in TASKS.values() if task.has_many_texts for url in task.urls)
_DRAIN_BYTES = 16 << 20
_DRAIN_S = 5.0
# Within which a body, or the next part of an upload, must be received.
BODY_S = 60.0
# On every response without headers of its own: a browser must not cache, sniff, run or frame it.
_GUARDS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class RequestContext:
    """Gives each request an id, measures its latency, and turns errors into a response or a cut connection."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        context = _RequestScope(scope, send, self._runtime)
        context.spent = begin_headers()
        structlog.contextvars.clear_contextvars()
        named = {**_client_ids(scope), **context.trace.trace_id}
        structlog.contextvars.bind_contextvars(request_id=context.request_id, **named)
        bind_caller(context.request_id, address_of(scope))
        try:
            await self.app(scope, receive, context.send)
        except StreamAborted:
            # Returning without a last chunk makes the server cut the connection, so that the client sees an error.
            return None
        except asyncio.CancelledError:
            # The time to drain is over: uvicorn cuts what has begun, and answers the rest with 500 if this does not.
            await context.answer(Draining("this server is stopping: send the request again"), receive)
            raise
        except HeadraceError as error:
            await context.answer(error, receive)
        except Exception as error:  # noqa: BLE001 - the last place where a request can get an answer
            # The framework raises a route's error again after it was answered and logged.
            if not context.has_answered_defect:
                await context.answer(internal_error(error), receive)
        finally:
            self._runtime.streams.leave(scope)
            context.record_span()
        return None


_LONGEST_CLIENT_ID = 512


def _client_ids(scope: Scope) -> dict[str, str]:
    """Return the caller's own request id for the log; an invalid one is left out."""
    client_id = Headers(scope=scope).get("x-client-request-id", "")
    is_good = 0 < len(client_id) <= _LONGEST_CLIENT_ID and client_id.isascii() and client_id.isprintable()
    return {"client_request_id": client_id} if is_good else {}


class _RequestScope:
    """The state of one request: its id, its start, its trace, and whether its response has begun."""

    def __init__(self, scope: Scope, send: Send, runtime: Runtime) -> None:
        self.request_id = new_id("req")
        self._scope = scope
        self._send = send
        self._runtime = runtime
        self._started_at = time.perf_counter()
        self._has_begun = False
        self.spent: dict[str, str] = {}
        self._status = 0
        self.trace = RequestTrace(runtime.tracing, scope)
        scope.setdefault("state", {}).update(request_id=self.request_id, trace=self.trace.context)

    def record_span(self) -> None:
        """Write the span of the request, which has ended."""
        self.trace.record(self.request_id, self._status)

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun, self._status = True, message["status"]
            self._begin(message)
        await self._send(message)

    @property
    def has_answered_defect(self) -> bool:
        return self._has_begun and self._scope["state"].get("error_code") == HeadraceError.default_code

    async def answer(self, error: HeadraceError, receive: Receive) -> None:
        if not self._has_begun:
            await respond(error, self._scope)(self._scope, receive, self.send)

    def _begin(self, message: Message) -> None:
        took_s = time.perf_counter() - self._started_at
        headers = MutableHeaders(raw=message.setdefault("headers", []))
        headers["x-request-id"] = self.request_id
        if (form := form_of(self._scope)) is not None:
            headers[form.id_header] = self.request_id
        headers["openai-processing-ms"] = str(round(took_s * 1000))
        for name, value in (*self.spent.items(), *_GUARDS.items()):
            headers.setdefault(name, value)
        metrics = self._runtime.metrics
        route = getattr(self._scope.get("route"), "path", "unmatched")
        metrics.latency.labels(self._scope["method"], route, message["status"]).observe(took_s)
        if (code := self._scope["state"].get("error_code")) is not None:
            metrics.refused.labels(code).inc()
            self._runtime.refusal_log.note(code, self._scope)


class Authenticate:
    """Refuses requests under ``/v1/`` without a valid API key."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            scope["state"]["principal"] = await self._runtime.authenticator.principal(_authorization(scope))
        await self.app(scope, receive, send)


def _authorization(scope: Scope) -> str | None:
    """Return the value of the Authorization header; ``x-api-key`` stands for a bearer key."""
    headers = Headers(scope=scope)
    given = headers.getlist("authorization")
    if len(given) > 1:
        raise InvalidRequest("the request has more than one Authorization header: send one", param="Authorization")
    keys = [f"Bearer {key}" for key in headers.getlist("x-api-key")]
    if len({*given, *keys}) > 1:
        raise InvalidRequest("the request has more than one API key: send one", param="x-api-key")
    return next(iter([*given, *keys]), None)


class OverLimitKeys:
    """Keys that are over their limits: their requests are refused without Redis until their time has come.

    At most for a second, because the limits may have been changed. Used on the event loop alone.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._errors: TLRUCache[str, OverRate] = TLRUCache(_MAX_KEYS, _refused_until, timer=clock)

    def note(self, key_id: str, error: OverRate) -> None:
        """Note that a request with this key was refused now."""
        self._errors[key_id] = error

    def check(self, key_id: str) -> None:
        """Raise OverRate if the key is still over its limit."""
        if (error := self._errors.get(key_id)) is not None:
            raise OverRate(error.message, retry_after_s=error.retry_after_s, headers=error.headers)


def _refused_until(_key_id: str, error: OverRate, now: float) -> float:
    return now + min(error.retry_after_s, _MAX_REFUSE_S)


class MeterWrites:
    """Counts requests that may change something; refuses those over the limits of their key or its tenant.

    A submission is counted with its batch (``producer_api.submission.submit``). If it is refused before that, it is
    counted here, so that refused requests are not free. Every other write is counted here before its body is read.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._runtime = runtime
        self._refused = OverLimitKeys()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WRITES or "principal" not in scope["state"]:
            return await self.app(scope, receive, send)
        principal: Principal = scope["state"]["principal"]
        self._refused.check(principal.key_id)
        if scope["method"] != "POST" or scope["path"] not in _SUBMISSIONS:
            await self._spend(principal)
            return await self.app(scope, receive, send)

        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                await self._count(principal)
            await send(message)

        try:
            await self.app(scope, receive, send_counted)
        except HeadraceError as error:
            if isinstance(error, OverRate):
                self._refused.note(principal.key_id, error)
            await self._count(principal)
            raise

    async def _count(self, principal: Principal) -> None:
        """Count a refused submission that was not counted yet. Its response does not change."""
        if not has_spent_request():
            with suppress(HeadraceError):
                await self._spend(principal)

    async def _spend(self, principal: Principal) -> None:
        try:
            await run_in_threadpool(self._runtime.rate_limits.spend_request, principal)
        except OverRate as error:
            self._refused.note(principal.key_id, error)
            raise


class BufferBody:
    """Reads a request's body before its route runs. Refuses a body that is too large or has too many JSON values.

    The route gets plain JSON: a body with gzip is decompressed, and one without a type is JSON. An upload goes on to
    its route unless its declared length is over the limit of files. Without a route the body is not read.
    """

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app
        self._routes: RouteTable | None = None
        self._limit = runtime.settings.max_body_bytes
        # Their tokens are bounded, and in some languages a token has many bytes.
        self._limits = dict.fromkeys(_WITH_MANY_TEXTS, runtime.settings.max_embedding_body_bytes)
        self._file_limit = runtime.settings.max_file_bytes
        self._form_limits = {
            task.urls[0]: task.form_bytes(runtime.settings) for task in TASKS.values() if task.form_bytes is not None
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _HAS_BODY:
            return await self.app(scope, receive, send)
        if not self._has_route(scope):
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        form_limit = self._form_limit(scope["path"])
        is_gzip = has_gzip(headers, may=form_limit is None)
        if form_limit is not None:
            if _declared_length(headers) > form_limit:
                return await self._refuse(scope, receive, send, form_limit)
            return await self.app(scope, _TimedReceive(receive), send)
        limit = self._limits.get(scope["path"], self._limit)
        body = None if _declared_length(headers) > limit else await self._read(receive, limit)
        if body is None:
            return await self._refuse(scope, receive, send, limit)
        if is_gzip:
            body = await run_in_threadpool(decompress, body, limit)
        if body:
            _check_type(headers)
            check_counts(body)
            scope["headers"] = plain_json(scope["headers"])
        return await self.app(scope, BufferedBody(body, receive), send)

    def _form_limit(self, path: str) -> int | None:
        """Return the most bytes of a form with a file; None for a path that takes none."""
        if path == _FILES:
            return self._file_limit + _FORM_BYTES
        if (most_bytes := self._form_limits.get(path)) is not None:
            return most_bytes + _FORM_BYTES
        return min(self._file_limit, MOST_PART_BYTES) + _FORM_BYTES if _PART.fullmatch(path) else None

    def _has_route(self, scope: Scope) -> bool:
        if self._routes is None:
            self._routes = RouteTable(scope["app"].routes)
        return self._routes.takes(scope)

    async def _read(self, receive: Receive, limit: int) -> bytes | None:
        """Return the body, or None once it is over the limit. Raises SlowBody."""
        try:
            async with asyncio.timeout(BODY_S):
                return await self._read_all(receive, limit)
        except TimeoutError:
            raise SlowBody(f"the body did not come within {BODY_S:g} s") from None

    async def _read_all(self, receive: Receive, limit: int) -> bytes | None:
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return bytes(body)
            body += message.get("body", b"")
            if len(body) > limit:
                return None
            if not message.get("more_body", False):
                return bytes(body)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Answer 413 at once, then read and drop some of the rest of the body.

        A client that writes its whole body before it reads would otherwise get a reset instead of the answer.
        """
        response = respond(TooLarge(f"the body is over {limit} bytes, the most that is accepted"), scope)
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        with suppress(TimeoutError):
            await asyncio.wait_for(_drop_body(receive), _DRAIN_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class _TimedReceive:
    """A ``receive`` with a time limit for each part of the body."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._has_ended = False

    async def __call__(self) -> Message:
        if self._has_ended:
            return await self._receive()  # only the disconnect can follow, at any time
        try:
            async with asyncio.timeout(BODY_S):
                message = await self._receive()
        except TimeoutError:
            raise SlowBody(f"the next part of the body did not come within {BODY_S:g} s") from None
        self._has_ended = not message.get("more_body", False)
        return message


class BufferedBody:
    """A ``receive`` that returns the buffered body once, and then the messages of the connection."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return await self._receive() if message is None else message


async def _drop_body(receive: Receive) -> None:
    left = _DRAIN_BYTES
    while left > 0:
        message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))


def _declared_length(headers: Headers) -> int:
    declared = headers.get("content-length", "0")
    return int(declared) if declared.isascii() and declared.isdecimal() else 0


def _check_type(headers: Headers) -> None:
    kind = headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise InvalidRequest("the body must be JSON: send the header `Content-Type: application/json`")
