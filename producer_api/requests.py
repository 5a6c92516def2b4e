"""What routes ask of a request: the Runtime, a body read strictly, a wait that ends when the caller leaves."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import Depends, Header
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from producer_api.event_stream import until_disconnected
from producer_api.runtime import Runtime

T = TypeVar("T")


async def _runtime(request: Request) -> Runtime:
    runtime: Runtime = request.app.state.runtime
    return runtime


RuntimeOf = Annotated[Runtime, Depends(_runtime)]
IdempotencyKey = Annotated[
    str | None,
    Header(alias="Idempotency-Key", description="the same key and body give the same job, for a day"),
]


class _StrictJson(Request):
    """Reads JSON by the letter: no NaN, no lone surrogates, no nesting without end."""

    async def json(self) -> Any:
        body = await self.body()
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError as error:
            # Without the document: an error that carries it might take a prompt into a log.
            raise json.JSONDecodeError(error.msg, "", 0) from None


class StrictJsonRoute(APIRoute):
    """A route whose body is read by ``_StrictJson``."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's own handler, given the stricter request."""
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictJson(request.scope, request.receive))

        return handle_strictly


async def unless_gone(request: Request, answer: Awaitable[T]) -> T | None:
    """Wait for the answer; stop waiting and return None if the caller leaves first."""
    work = asyncio.ensure_future(answer)
    gone = asyncio.ensure_future(until_disconnected(request.receive))
    try:
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else None
    finally:
        gone.cancel()
        work.cancel()
        await asyncio.wait({work, gone})
