"""Requests that the server cancels, because the time to drain is over."""

import asyncio
from typing import Any

import orjson
import pytest
from starlette.types import Message, Receive, Scope, Send

from headrace.producer_api.http.middleware import RequestContext
from headrace.producer_api.runtime import Runtime
from headrace.store.settings import Settings

START: Message = {"type": "http.response.start", "status": 200, "headers": []}


async def cancelled(runtime: Runtime, begins: bool) -> list[Message]:
    """Return the messages of ASGI for a request whose route waits and is cancelled; it may have begun an answer."""
    is_waiting, sent = asyncio.Event(), list[Any]()

    async def route(_scope: Scope, _receive: Receive, send: Send) -> None:
        if begins:
            await send(dict(START))
        is_waiting.set()
        await asyncio.Event().wait()

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/v1/jobs", "headers": [], "client": ("127.0.0.1", 1)}
    request = asyncio.create_task(RequestContext(route, runtime)(scope, receive, send))
    await is_waiting.wait()
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    return sent


def test_it_is_told_to_come_again_unless_its_answer_has_begun(settings: Settings) -> None:
    runtime = Runtime(settings)
    try:
        start, body = asyncio.run(cancelled(runtime, begins=False))
        assert (start["status"], orjson.loads(body["body"])["error"]["code"]) == (503, "draining")
        (begun,) = asyncio.run(cancelled(runtime, begins=True))
        assert begun["status"] == 200
    finally:
        runtime.db.close()
        runtime.redis.close()
