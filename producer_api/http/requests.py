"""Dependencies of routes: the Runtime, strict JSON, the origin of a request, and a wait that ends on a disconnect.

The number of values in a JSON body is limited, and checked before the body is parsed. A megabyte of ``{}`` is 340,000
objects, and an object takes many times the memory of its bytes. Texts are not counted.
"""

import asyncio
import hashlib
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar

import orjson
from fastapi import Depends, Header
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from headrace.producer_api.runtime import Runtime
from headrace.producer_api.server.sse import until_disconnected
from headrace.producer_api.submission.draft_job import Origin
from headrace.store.errors import InvalidRequest
from headrace.store.tracing.trace_context import TraceContext

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
