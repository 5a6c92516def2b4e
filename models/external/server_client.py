"""HTTP to an inference server: one client for its questions and its streams. The only module that uses httpx2 here.

An answer is bounded in size, and every error becomes one of three: the request is refused for good, it has failed, or
the server is away.
"""

import json
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, NoReturn

import httpx2
import orjson

from headrace.models.engine.requests import EngineError, NumericalError
from headrace.models.external.upstream import ServerLost, UpstreamBusy, UpstreamFailed, UpstreamLost, UpstreamRefused

_CONNECT_S = 5.0
_ANSWER_S = 10.0
# Detects within half a minute that the server's machine is gone. A stream that waits for a token sends nothing, so
# without this it would wait for ever.
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)
_MAX_LINE_BYTES = 4 << 20
MAX_ANSWER_BYTES = 16 << 20
_MAX_QUOTED = 300
_DATA = b"data:"

_AWAY = frozenset({401, 403, 408, 429, 502, 503, 504})
"""Statuses that say nothing about the request: a wrong key, an overloaded server, a proxy without a server."""

_BROKEN = ("error sending request", "error decoding response body", "error reading a body")
"""What vLLM's router and smg say, with HTTP 500 or in the stream, of a server that is gone: the words of reqwest."""

_BUSY = frozenset({429, 503})
_TOO_LONG = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_PAUSE_S = 1.0  # for a busy server that does not say how long
_MAX_PAUSE_S = 300.0


class ServerClient:
    """Requests to one server. Every method raises UpstreamLost, UpstreamRefused or UpstreamFailed."""

    def __init__(self, url: str, api_key: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """``url`` has no path, or the one before all paths of the server. ``api_key`` is sent as a bearer token."""
        self._clock = clock
        self._paused_until = 0.0
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx2.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, pool=None),
            trust_env=False,
            transport=httpx2.AsyncHTTPTransport(
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=60.0),
                trust_env=False,
                verify=ssl.create_default_context() if url.startswith("https") else False,
                socket_options=_KEEPALIVE,
            ),
        )

    @property
    def is_paused(self) -> bool:
        """True for as long as the server has said that it wants no requests (429 and 503, Retry-After)."""
        return self._clock() < self._paused_until

    async def get(self, path: str) -> bytes:
        """Return the body of a GET."""
        async with self._answer("GET", path, None) as response:
            return await _body(response)

    async def get_json(self, path: str) -> Any:
        """Return the JSON value of a GET."""
        return _parsed(await self.get(path))

    async def post(
        self,
        path: str,
        body: dict[str, Any],
        headers: Mapping[str, str] | None = None,
        *,
        read_s: float | None = _ANSWER_S,
    ) -> bytes:
        """Send a JSON object, and return the body of the answer; ``read_s`` None: without a time limit."""
        async with self._answer("POST", path, body, headers, read_s=read_s) as response:
            return await _body(response)

    async def post_status(self, path: str, body: dict[str, Any]) -> int:
        """Send a JSON object, and return the HTTP status of the answer, whatever it is."""
        try:
            return (await self._http.post(path, json=body)).status_code
        except httpx2.TransportError as error:
            raise _silent(error) from error

    async def stream(
        self, path: str, body: dict[str, Any], headers: Mapping[str, str] | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Send a JSON object, and yield the data of each server-sent event. There is no time limit between events."""
        answer = self._answer("POST", path, body, headers, read_s=None)
        async with answer as response, aclosing(_lines(response)) as lines:
            async for line in lines:
                if line.startswith(_DATA):
                    yield line[len(_DATA) :].strip()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: Mapping[str, str] | None = None,
        *,
        read_s: float | None = _ANSWER_S,
    ) -> AsyncIterator[httpx2.Response]:
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, pool=None, read=read_s)
        content = None if body is None else orjson.dumps(body)
        headers = dict(headers or {}) | ({} if body is None else {"content-type": "application/json"})
        try:
            async with self._http.stream(method, path, content=content, headers=headers, timeout=timeout) as response:
                if response.status_code >= httpx2.codes.BAD_REQUEST:
                    if response.status_code in _BUSY:
                        self._paused_until = self._clock() + _pause_s(response.headers.get("retry-after"))
                    raise _refusal(response.status_code, await _body(response))
                yield response
        except (httpx2.TransportError, httpx2.StreamError) as error:
            raise _silent(error) from error


def _silent(error: Exception) -> UpstreamLost:
    return UpstreamLost(f"the inference server does not answer ({type(error).__name__})")


def error_of(status: int, reason: str) -> EngineError:
    """Return the error of an answer with this HTTP status, or of one in a stream that has begun."""
    if any(words in reason for words in _BROKEN):
        return ServerLost(f"the router has lost the inference server: {reason}")
    if status in _AWAY:
        return UpstreamBusy(f"the inference server takes no requests (HTTP {status}): {reason}")
    if status < httpx2.codes.INTERNAL_SERVER_ERROR:
        return UpstreamRefused(f"the inference server refuses the request: {reason}")
    return UpstreamFailed(f"the inference server failed (HTTP {status}): {reason}")


def _pause_s(retry_after: str | None) -> float:
    """Return the seconds of a Retry-After header, which servers of models write as a number."""
    try:
        return min(max(float(retry_after or _PAUSE_S), 0.0), _MAX_PAUSE_S)
    except ValueError:
        return _PAUSE_S


def _refusal(status: int, body: bytes) -> EngineError:
    """Return the error of an answer, with the message and the code as servers with OpenAI's API write them."""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError:
        return error_of(status, quoted(body.decode(errors="replace")))
    error = found.get("error", found) if isinstance(found, dict) else found
    if not isinstance(error, dict):
        return error_of(status, quoted(str(error)))
    refusal = error_of(status, quoted(str(error.get("message", error.get("detail")))))
    if isinstance(refusal, UpstreamRefused) and not _TOO_LONG.isdisjoint({error.get("code"), error.get("type")}):
        refusal.code = "context_length_exceeded"
    return refusal


def quoted(message: str) -> str:
    """Return the beginning of a server's message. What it quotes of the request, or of a picture, is left out."""
    for sign in ("'input'", "input_value", '"input"', ";base64"):
        message = message.partition(sign)[0]
    return message.strip().partition("\n")[0][:_MAX_QUOTED]


def parsed_answer(data: bytes) -> Any:
    """Return the JSON value of an answer, or of an event of one.

    Raises NumericalError for NaN and Infinity, which JSON does not have and some servers write, and UpstreamLost for
    anything else that is not JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        with suppress(ValueError, RecursionError):
            json.loads(data, parse_constant=_refuse_number)
        return _parsed(data)


def _refuse_number(_name: str) -> NoReturn:
    raise NumericalError


def _parsed(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UpstreamLost("the inference server's answer is not JSON: is it the address of another server?") from error


async def _body(response: httpx2.Response) -> bytes:
    """Return the whole body, if it is not too large."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > MAX_ANSWER_BYTES:
            raise UpstreamLost(f"the inference server's answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


async def _lines(response: httpx2.Response) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a body as they come."""
    rest = b""
    async for part in response.aiter_bytes():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > _MAX_LINE_BYTES:
            raise UpstreamLost(f"the inference server sent a line longer than {_MAX_LINE_BYTES} bytes")
    if rest:
        yield rest
