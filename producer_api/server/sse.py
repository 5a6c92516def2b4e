"""Server-sent events over ASGI: a response that notices a disconnect and never ends cleanly by accident.

A clean end of a stream means that the client has everything. So if the source fails or the process drains, the
connection is cut: chunked encoding without its last chunk is an error in every client.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import Any

import orjson
import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from headrace.store.errors import HeadraceError

_log = structlog.get_logger("headrace.producer_api")

PING = b": ping\n\n"

LINE_PING = b": ping\n"
"""For streams with ids that OpenAI's client reads: once it has seen an id, it takes an empty line for an event."""


class StreamAborted(Exception):
    """The stream cannot be completed; the connection must be cut, not ended."""


def event(name: str, event_id: str, data: object) -> bytes:
    """Return an event with an id, from which its client can resume."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), name.encode(), orjson.dumps(data))


def data_only(data: object) -> bytes:
    """Return an event of OpenAI's kind, without name and id."""
    return b"data: %b\n\n" % orjson.dumps(data)


def named(data: Mapping[str, Any]) -> bytes:
    """Return an event of Anthropic's kind, named after its ``type``, without an id."""
    return b"event: %b\ndata: %b\n\n" % (str(data["type"]).encode(), orjson.dumps(data))


class EventStream(Response):
    """Sends each chunk at once, inside ``while_open``. ``on_gone`` is called if the client disconnects early."""

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        *,
        while_open: Callable[[], AbstractContextManager[object]],
        headers: Mapping[str, str] | None = None,
        on_gone: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        # Proxies must not buffer or cache the stream.
        fixed = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(headers={**fixed, **(headers or {}), "content-length": ""})
        self.raw_headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        self.chunks = chunks
        self._while_open = while_open
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; raises StreamAborted if it could not be completed."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        with self._while_open():
            pump = asyncio.create_task(self._pump(send))
            gone = asyncio.create_task(until_disconnected(receive))
            try:
                await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
                if pump.done():
                    return pump.result()
            finally:
                gone.cancel()
                await _end(pump)
        if self._on_gone is not None:
            await self._on_gone()
        return None

    async def _pump(self, send: Send) -> None:
        try:
            async with aclosing(self.chunks) as chunks:
                async for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except HeadraceError as error:
            _log.warning("stream_aborted", code=error.code, reason=error.message)
            raise StreamAborted from error
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel the task and wait until it has cleaned up. Its exception is read from its result elsewhere."""
    task.cancel()
    await asyncio.wait({task})


async def until_disconnected(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class Heartbeat:
    """Decides when an idle stream needs a ping, so that proxies keep its connection open."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._sent_at = time.monotonic()

    def is_due(self) -> bool:
        """Return True if nothing was sent for an interval, and note that a ping is sent."""
        if time.monotonic() - self._sent_at < self._every_s:
            return False
        self.beat()
        return True

    def beat(self) -> None:
        """Note that something was sent."""
        self._sent_at = time.monotonic()
