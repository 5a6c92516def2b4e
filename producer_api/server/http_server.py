"""uvicorn as Headrace runs it, with bounds on what a connection may do before it is a request.

uvicorn bounds neither how long the head of a request may be nor how long it may take to come, so anybody, without a
key, could fill the memory or hold connections open for ever. Bodies are bounded where they are read (``asgi``).
"""

import asyncio
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from producer_api.server.errors import BadHttp, body_of, status_of
from store.errors import HeadraceError
from store.settings import Settings

# Longer than any proxy's, so that it is the proxy which closes an idle connection.
_KEEP_ALIVE_S = 75
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol for a connection, whose heads are of bounded size and come in bounded time."""

    head_bytes = 64 << 10
    head_s = 20.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = False
        # Of the lines that are whole, and of all that came since the head began.
        self._line_bytes = self._fed_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._refusal: HeadraceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a line without end is never parsed, so that what was fed is counted too."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._fed_bytes += len(data)
            if self._fed_bytes > self.head_bytes:
                self._answer(self._too_large())
        elif self._deadline is None and not self._is_answering:
            self._expect_head()  # it was no request yet, empty lines perhaps, and it ended the wait for one

    def on_message_begin(self) -> None:
        """Count anew."""
        super().on_message_begin()
        self._is_in_head, self._line_bytes, self._fed_bytes = True, 0, 0
        if self._deadline is None and not self._is_answering:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Count a part of the URL."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._is_in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Begin to wait for the rest of a head that came while the response before it was under way."""
        super().on_response_complete()
        if self._is_in_head and self._deadline is None and not self._is_answering:
            # It has begun, so this is no idle connection.
            self._unset_keepalive_if_required()
            self._expect_head()

    @property
    def _is_answering(self) -> bool:
        """True while a response is under way, or a whole request waits for its turn."""
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Answer what does not parse, or what was refused while it was parsed, in the shape of every error."""
        self._answer(self._refusal or BadHttp("the request is not valid HTTP"))

    def _count(self, num_bytes: int) -> None:
        self._line_bytes += num_bytes
        if self._line_bytes > self.head_bytes:
            self._refusal = self._too_large()
            raise self._refusal  # out of the parser, which then says that it cannot parse

    def _too_large(self) -> HeadraceError:
        return BadHttp(f"the request's URL and headers are over {self.head_bytes} bytes", code="headers_too_large")

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(self.head_s, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._is_in_head:
            self._answer(BadHttp(f"the request's head did not come within {self.head_s:g} s", code="request_timeout"))
        else:
            self.transport.close()

    def _answer(self, error: HeadraceError) -> None:
        """Write the error past the application, which has not heard of this request, and hang up.

        In the middle of the response before it nothing is written: it would be taken for a part of that response.
        """
        if self.transport.is_closing():
            return
        if self._is_answering:
            self.transport.close()
            return
        status, body = status_of(error), orjson.dumps(body_of(error))
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (status, _REASONS[status], len(body)) + body)
        self.transport.close()


def server_config(app: Any, settings: Settings, **options: Any) -> uvicorn.Config:
    """Return how the API is served. ``options`` are more of uvicorn's.

    A caller's address is that of its connection, unless that is a trusted proxy's.
    """
    return uvicorn.Config(
        app,
        http=BoundedHttp,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(settings.drain_s) + 1,
        **options,
    )
