"""uvicorn with limits on the size and the time of a request's head.

uvicorn has neither limit, so a client without a key could fill the memory or hold connections open for ever. Bodies are
limited where they are read (``producer_api.http.middleware``).
"""

import asyncio
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.producer_api.server.errors import BadHttp, body_of, status_of
from headrace.store.errors import HeadraceError
from headrace.store.settings import Settings

# Longer than that of usual proxies, so that the proxy closes an idle connection first.
_KEEP_ALIVE_S = 75
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol for a connection, with limits on the size and the time of a request's head."""

    head_bytes = 64 << 10
    head_s = 20.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._is_in_head = False
        # Bytes of complete lines, and all bytes since the head began.
        self._line_bytes = self._fed_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._refusal: HeadraceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes and count them: the parser does not report a line without an end."""
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._fed_bytes += len(data)
            if self._fed_bytes > self.head_bytes:
                self._answer(self._too_large())
        elif self._deadline is None and not self._is_answering:
            self._expect_head()  # no request has begun, only empty lines perhaps, but the timer was stopped

    def on_message_begin(self) -> None:
        """Reset the counters for a new head."""
        super().on_message_begin()
        self._is_in_head, self._line_bytes, self._fed_bytes = True, 0, 0
        if self._deadline is None and not self._is_answering:
            self._expect_head()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of a part of the URL."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        """Stop the timer: the head is complete."""
        self._is_in_head = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Start the timer for a head that began while the previous response was sent."""
        super().on_response_complete()
        if self._is_in_head and self._deadline is None and not self._is_answering:
            # The head has begun, so the connection is not idle.
            self._unset_keepalive_if_required()
            self._expect_head()

    @property
    def _is_answering(self) -> bool:
        """True while a response is sent, or a complete request waits for it."""
        return self.cycle is not None and not self.cycle.response_complete

    def send_400_response(self, msg: str) -> None:
        """Send the error of a head that is refused or cannot be parsed, in the shape of every error."""
        self._answer(self._refusal or BadHttp("the request is not valid HTTP"))

    def _count(self, num_bytes: int) -> None:
        self._line_bytes += num_bytes
        if self._line_bytes > self.head_bytes:
            self._refusal = self._too_large()
            raise self._refusal  # out of the parser, which then calls ``send_400_response``

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
        """Write the error without the application, and close the connection.

        While the previous response is sent, only the connection is closed: the client would read the error as a part
        of that response.
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
    """Return uvicorn's configuration for the API. ``options`` are more options of uvicorn.

    A caller's address is that of its connection, or the one that a trusted proxy passes on.
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
