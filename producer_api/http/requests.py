"""Dependencies of routes: the Runtime, strict JSON, the origin of a request, and a wait that ends on a disconnect.

The number of values in a JSON body is limited, and checked before the body is parsed. A megabyte of ``{}`` is 340,000
objects, and an object takes many times the memory of its bytes. Texts are not counted.

Paths: other spellings of a route's path, and whether a route takes a request.

Some clients put a slash at the end of a path, and inference servers have a few routes outside of ``/v1``, or under the
``/v2`` of the API that they have taken a route from. All are served in place: a redirect would go to the host that the
request names, with the key and the body.

Compressed bodies: gzip, with bounds on what comes out. Other encodings are refused.
"""

import asyncio
import hashlib
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import Depends, Header
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.errors import UnsupportedEncoding
from headrace.producer_api.server.sse import until_disconnected
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import InvalidRequest, TooLarge
from headrace.store.tracing.tracing import TraceContext

T = TypeVar("T")

MAX_PROJECT_CHARS = 255

MOST_CONTAINERS = 16_384
"""Lists and objects. A conversation of 1,024 messages with three parts each has fewer than a third of them."""

MOST_FIELDS = 16_384
"""Fields of all objects together: tools with schemas of half a megabyte have fewer."""

MOST_VALUES = 262_144
"""Values of lists and objects. As token ids they are more than any model's window."""

# The last quote is optional, so that each byte is read once even in a text without an end.
_TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeOf = Annotated[Runtime, Depends(_runtime)]


async def _base_url(request: Request) -> str:
    """Return the address by which the caller knows this server, without a last slash.

    A proxy may pass it on. Any caller may send these headers, and changes nothing by them but its own answer.
    """
    url = request.base_url
    scheme = request.headers.get("x-forwarded-proto", "").partition(",")[0].strip()
    host = request.headers.get("x-forwarded-host", "").partition(",")[0].strip()
    known = {"scheme": scheme if scheme in ("http", "https") else "", "netloc": host}
    return str(url.replace(**{name: value for name, value in known.items() if value})).rstrip("/")


ASK_HEADER: Final = "Headrace-Cache"
"""The caller's wish about the response cache: ``use`` or ``bypass``."""

BaseUrlOf = Annotated[str, Depends(_base_url)]


@dataclass(frozen=True, slots=True)
class OriginHeaders:
    """What a request's headers and its key say about where it came from; its route must be known."""

    route: str
    key_id: str
    idempotency_key: str | None
    is_retry: bool
    project: str | None
    cache: str | None
    trace: TraceContext | None

    def origin(self, content: Iterable[bytes], num_bytes: int) -> Origin:
        """Return the origin of a request with this content, in parts: equal requests have equal ones."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.key_id.encode(), self.route.encode(), *content):
            digest.update(part)
            digest.update(b"\0")
        return Origin(
            self.route,
            self.idempotency_key,
            digest.hexdigest(),
            self.is_retry,
            num_bytes,
            self.project,
            self.cache,
            self.trace,
        )


async def read_origin_headers(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(alias="Idempotency-Key", description="the same key and body give the same job, for a day"),
    ] = None,
    retry_count: Annotated[
        str | None,
        Header(
            alias="x-stainless-retry-count",
            description="as OpenAI's clients send it; above 0, without an Idempotency-Key, the job that the same body "
            "made within the last ten minutes is the answer, not a second one",
        ),
    ] = None,
    project: Annotated[
        str | None,
        Header(alias="OpenAI-Project", max_length=MAX_PROJECT_CHARS, description="whom the usage is counted for"),
    ] = None,
    cache: Annotated[
        str | None,
        Header(
            alias=ASK_HEADER,
            description="`use`: the answer may be that of an equal request, if the server has a response cache; "
            "`bypass`: it is computed",
        ),
    ] = None,
) -> OriginHeaders:
    """Return what the headers say, without reading the body: for a route that reads it block by block."""
    return OriginHeaders(
        f"{request.method} {request.scope['route'].path}",
        request.state.principal.key_id,
        idempotency_key,
        (retry_count or "0").strip() not in ("", "0"),
        project or None,
        cache,
        request.scope["state"].get("trace"),
    )


OriginHeadersOf = Annotated[OriginHeaders, Depends(read_origin_headers)]


async def read_origin(request: Request, headers: OriginHeadersOf) -> Origin:
    """Return the origin of this request; its route must be known."""
    body = await request.body()
    return headers.origin([body], len(body))


OriginOf = Annotated[Origin, Depends(read_origin)]


def check_counts(body: bytes) -> None:
    """Raise InvalidRequest for a JSON body with more values than the limits, not counting inside texts."""
    if any(found > most for _, found, most in _counts(body)):
        for what, found, most in _counts(_TEXT.sub(b"", body)):
            if found > most:
                raise InvalidRequest(f"the JSON body has {found} {what}, and {most} are accepted: send less at once")


def _counts(text: bytes) -> list[tuple[str, int, int]]:
    return [
        ("lists and objects", text.count(b"[") + text.count(b"{"), MOST_CONTAINERS),
        ("fields of objects", text.count(b":"), MOST_FIELDS),
        ("values", text.count(b",") + 1, MOST_VALUES),
    ]


class _StrictJson(Request):
    """Parses JSON strictly: no NaN, no lone surrogates, limited nesting."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            # Without the document, so that no prompt gets into a log.
            raise json.JSONDecodeError(error.msg, "", 0) from None


class StrictJsonRoute(APIRoute):
    """A route that parses its body with ``_StrictJson``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler with the strict request."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictJson(request.scope, request.receive))

        return handle_strictly


async def unless_gone(request: Request, answer: Awaitable[T]) -> T | None:
    """Wait for the answer; return None if the caller disconnects first."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(until_disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.wait({work, gone})


_API = "/v1/"
# As vLLM and others have them. They need a key here, because all under ``/v1/`` does.
_OUTSIDE = frozenset({"/models", "/tokenize", "/detokenize", "/rerank"})
# Cohere's second API has the same request and answer as its first, which are Jina's as well.
_SECOND = {"/v2/rerank": "/v1/rerank"}


class CanonicalPath:
    """Rewrites other spellings of an API path, before anything looks at the path."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = canonical(scope["path"])
        await self.app(scope, receive, send)


def canonical(path: str) -> str:
    """Return the path under ``/v1``, without a last slash; any other path as it is."""
    inside = path if path.startswith(_API) else f"/v1{path}"
    inside = inside.removesuffix("/")
    if (first := _SECOND.get(path.removesuffix("/"))) is not None:
        return first
    is_known = path.startswith((_API, "/models/")) or inside.removeprefix("/v1") in _OUTSIDE
    return inside if is_known else path


class RouteTable:
    """Tells whether any of ``routes`` takes a request."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes
        # A look into a set costs less than the patterns of all routes.
        self._plain = {
            (method, path)
            for route in routes
            if "{" not in (path := getattr(route, "path", "{"))
            for method in getattr(route, "methods", None) or ()
        }

    def takes(self, scope: Scope) -> bool:
        """Return True if a route has the request's path and method."""
        if (scope["method"], scope["path"]) in self._plain:
            return True
        return any(route.matches(scope)[0] is Match.FULL for route in self._routes)


_LEAST_BYTES = 64 << 10
_MOST_RATIO = 200
"""JSON of conversations shrinks to a fifth, the most repetitive one to a fiftieth."""

_GZIP = 16 + zlib.MAX_WBITS


def has_gzip(headers: Headers, *, may: bool) -> bool:
    """Return True for a body with gzip, False for a plain one. Raises UnsupportedEncoding.

    ``may``: gzip is accepted.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return False
    if may and encoding in ("gzip", "x-gzip"):
        return True
    how = "gzip or uncompressed" if may else "uncompressed"
    raise UnsupportedEncoding(f"a body encoded as {encoding[:20]!r} is not accepted: send it {how}")


def decompress(body: bytes, most_bytes: int) -> bytes:
    """Return the content of a gzip body. Raises InvalidRequest for what is not gzip, TooLarge over the bounds.

    No more than the bound is ever decompressed.
    """
    most = min(most_bytes, max(_LEAST_BYTES, _MOST_RATIO * len(body)))
    stream = zlib.decompressobj(wbits=_GZIP)
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error:
        raise InvalidRequest("the body is not valid gzip, which its `Content-Encoding` says") from None
    if len(content) > most:
        raise TooLarge(f"the decompressed body is over {most} bytes, the most that is accepted of {len(body)} bytes")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest("the body is not one whole gzip stream: its end is missing, or more follows")
    return content


def plain_json(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers as those of a plain body. A body without a type is JSON."""
    kept = [(name, value) for name, value in headers if name != b"content-encoding"]
    if not any(name == b"content-type" for name, _ in kept):
        kept.append((b"content-type", b"application/json"))
    return kept
