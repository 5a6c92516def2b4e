"""HTTP calls to a URL of a tenant, protected against server-side request forgery (SSRF).

The name is resolved once for each call, all its addresses must be allowed (see ``store.calls.addresses``), and
the connection goes to one of those addresses while Host, SNI and the certificate check keep the name. There are no
proxies, no redirects and no kept connections; one deadline bounds the whole call however slowly the peer drips, and
one number of bytes however fast it floods.
"""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpcore2

from headrace.store.calls.addresses import Network, is_allowed, parse_networks, split_url
from headrace.store.settings import Settings

MAX_RESPONSE_BYTES = 64 * 1024
MAX_READ_BYTES = 256 * 1024
"""Bytes of a whole call beside the body that is kept: informational answers, heads and the framing included."""

Resolve = Callable[[str, int], Sequence[str]]


class CallFailed(Exception):
    """No answer came. The message gives the reason and may be shown to the tenant."""


class CallTimedOut(CallFailed):
    """The deadline passed."""


class AnswerTooLong(CallFailed):
    """The answer is longer than the limit."""


class AddressRefused(CallFailed):
    """The URL, or an address of its name, may not be called."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer's status and headers (names in lower case). Without a limit for it the body was dropped."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a name. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class GuardedClient:
    """Calls allowed addresses. Safe to use from many threads."""

    def __init__(self, settings: Settings, *, resolve: Resolve = resolve, ssl_context: ssl.SSLContext | None = None):
        self._allow_http = settings.webhook_allow_http
        self._exempt = parse_networks(settings.webhook_allow_networks)
        self._resolve = resolve
        self._ssl_context = ssl_context or httpcore2.default_ssl_context()

    def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes,
        timeout_s: float,
        most_bytes: int | None = None,
        is_end: Callable[[bytes], bool] | None = None,
    ) -> Reply:
        """Send ``body`` and return the answer, also an error status. Raises CallFailed.

        The body of the answer is kept if it may have ``most_bytes``; AnswerTooLong is raised over the limit. It ends
        early behind the first part of it for which ``is_end`` is true; each part is asked about once, in order.
        """
        return self._call("POST", url, headers, body, timeout_s=timeout_s, most_bytes=most_bytes, is_end=is_end)

    def delete(self, url: str, *, headers: Mapping[str, str], timeout_s: float) -> Reply:
        """Send DELETE and return the answer without its body, also an error status. Raises CallFailed."""
        return self._call("DELETE", url, headers, None, timeout_s=timeout_s)

    def get(self, url: str, *, headers: Mapping[str, str], timeout_s: float, most_bytes: int) -> Reply:
        """Return the answer with its body, also an error status. Raises CallFailed; AnswerTooLong over the limit."""
        return self._call("GET", url, headers, None, timeout_s=timeout_s, most_bytes=most_bytes)

    def _call(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | None,
        *,
        timeout_s: float,
        most_bytes: int | None = None,
        is_end: Callable[[bytes], bool] | None = None,
    ) -> Reply:
        """Call, and keep the body of the answer if it may have ``most_bytes``; None: drop it. Raises CallFailed."""
        try:
            split_url(url, allow_http=self._allow_http, exempt=self._exempt)
        except ValueError as error:
            raise AddressRefused(f"URL refused: {error}") from error
        most_read = MAX_READ_BYTES + (most_bytes or 0)
        backend = _GuardedBackend(self._resolve, self._exempt, _Deadline(timeout_s), most_read)
        pool = httpcore2.ConnectionPool(
            ssl_context=self._ssl_context, max_keepalive_connections=0, retries=0, network_backend=backend
        )
        try:
            with pool:
                return _exchange(pool, method, url, headers, body, most_bytes, is_end)
        except (httpcore2.TimeoutException, TimeoutError) as error:
            raise CallTimedOut("timed out") from error
        except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
            raise CallFailed(_reason(error)) from error


def _exchange(
    pool: httpcore2.ConnectionPool,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: bytes | None,
    most_bytes: int | None,
    is_end: Callable[[bytes], bool] | None,
) -> Reply:
    wire_headers = [(name.encode(), value.encode()) for name, value in headers.items()]
    with pool.stream(method, url, headers=wire_headers, content=body) as response:
        answered = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        if most_bytes is None:
            _drop(response)
            return Reply(response.status, answered)
        kept = bytearray()
        for chunk in response.iter_stream():
            kept += chunk
            if len(kept) > most_bytes:
                raise AnswerTooLong(f"the answer has more than {most_bytes} bytes")
            if is_end is not None and is_end(chunk):
                break
        return Reply(response.status, answered, bytes(kept))


def _drop(response: httpcore2.Response) -> None:
    """Read a body where only the status counts: one that is too long is no error."""
    num_read = 0
    with suppress(AnswerTooLong):
        for chunk in response.iter_stream():
            num_read += len(chunk)
            if num_read >= MAX_RESPONSE_BYTES:
                break


def _reason(error: Exception) -> str:
    """Return the reason without an address: the tenant must not learn internal addresses of a name."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ssl.SSLCertVerificationError):
            return f"certificate not accepted: {seen.verify_message}"
        if isinstance(seen, ssl.SSLError):
            return "TLS failed"
        if isinstance(seen, ConnectionRefusedError):
            return "connection refused"
        if isinstance(seen, socket.gaierror):
            return "name not found"
        seen = seen.__cause__ or seen.__context__
    return "no valid HTTP answer" if isinstance(error, httpcore2.ProtocolError) else "connection failed"


class _Deadline:
    """A deadline for a whole call. The HTTP library has only a time-out for each read."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the remaining seconds. Raises TimeoutError after the deadline."""
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        return left_s


class _GuardedBackend(httpcore2.NetworkBackend):
    """Connects to allowed addresses only; all connections of the pool go through it."""

    def __init__(self, resolve: Resolve, exempt: Sequence[Network], deadline: _Deadline, most_read: int) -> None:
        self._most_read = most_read
        self._resolve = resolve
        self._exempt = exempt
        self._deadline = deadline
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address of ``host`` that answers, if all of them are allowed."""
        addresses = _in_time(self._resolve, host, port, self._deadline.left_s())
        if not addresses or not all(is_allowed(address, self._exempt) for address in addresses):
            raise AddressRefused("the name does not resolve to public addresses only")
        for address in addresses[:-1]:
            with suppress(httpcore2.NetworkError):
                return self._connect(address, port, socket_options)
        return self._connect(addresses[-1], port, socket_options)

    def _connect(self, address: str, port: int, socket_options: Iterable[Any] | None) -> httpcore2.NetworkStream:
        stream = self._sockets.connect_tcp(
            address, port, timeout=self._deadline.left_s(), socket_options=socket_options
        )
        return _DeadlineStream(stream, self._deadline, self._most_read)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.NetworkStream:
        """Refuse: a socket file is never public."""
        raise AddressRefused("socket files are not allowed")


def _in_time(resolve: Resolve, host: str, port: int, timeout_s: float) -> Sequence[str]:
    """Resolve a name within ``timeout_s``. Its name servers may be the tenant's, so they may be slow on purpose.

    Raises TimeoutError. The look-up itself cannot be cancelled; its thread ends when the resolver gives up.
    """
    found: Future[Sequence[str]] = Future()

    def ask() -> None:
        try:
            found.set_result(resolve(host, port))
        except Exception as error:  # noqa: BLE001 - ``result`` raises it in the waiting thread
            found.set_exception(error)

    threading.Thread(target=ask, name="resolver", daemon=True).start()
    return found.result(timeout_s)


class _DeadlineStream(httpcore2.NetworkStream):
    """A connection with the call's deadline for every operation, and a limit of bytes to read."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: _Deadline, most_read: int) -> None:
        self._most_read = most_read
        self._stream = stream
        self._deadline = deadline
        self._num_read = 0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read available bytes. Raises AnswerTooLong."""
        if self._num_read >= self._most_read:
            raise AnswerTooLong("the answer is too long")
        data = self._stream.read(max_bytes, self._deadline.left_s())
        self._num_read += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all bytes."""
        self._stream.write(buffer, self._deadline.left_s())

    def close(self) -> None:
        """Close the socket."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        """Do the TLS handshake for the URL's name, not for the address."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left_s())
        return _DeadlineStream(stream, self._deadline, self._most_read)

    def get_extra_info(self, info: str) -> Any:
        """Return information about the socket."""
        return self._stream.get_extra_info(info)
