"""Reads HTTP answers: the JSON of a success, or the error that it is."""

from collections.abc import Set
from typing import Any
from urllib.parse import urlsplit

import httpx2

from headrace.client.errors import (
    ApiUnavailable,
    ClientError,
    ConnectionLost,
    InvalidApiKey,
    InvalidBaseUrl,
    RequestRefused,
    ResourceMissing,
    TooManyRequests,
)
from headrace.client.job_data import Json

_KINDS: dict[int, type[ClientError]] = {
    401: InvalidApiKey,
    403: InvalidApiKey,
    404: ResourceMissing,
    410: ResourceMissing,
    429: TooManyRequests,
}
_NO_CONTENT = 204
_TRANSIENT = frozenset({429, 502, 503, 504})


def host_of(base_url: str) -> str:
    """Return the host of a base URL. Raises InvalidBaseUrl."""
    try:
        parts = urlsplit(base_url)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return parts.hostname
    except ValueError:
        pass
    raise InvalidBaseUrl(f"not an address like http://127.0.0.1:8000 (got {base_url!r})")


def lost(error: httpx2.TransportError, base_url: str) -> ConnectionLost:
    """Return the error for a request without an answer."""
    return ConnectionLost(f"no answer from {base_url}: {str(error) or type(error).__name__}", is_transient=True)


def read(response: httpx2.Response, base_url: str, expected: Set[str] = frozenset()) -> Json:
    """Return the JSON object of a success, which has at least the ``expected`` fields. Raises ClientError."""
    if response.is_error:
        raise error_of(response)
    body = {} if response.status_code == _NO_CONTENT else _json(response)
    if not isinstance(body, dict) or not body.keys() >= expected:
        raise ApiUnavailable(f"{base_url} answered, but not as Headrace does", status=response.status_code)
    return body


def error_of(response: httpx2.Response) -> ClientError:
    """Return the error that the server describes in its answer."""
    status = response.status_code
    body = _json(response)
    error: Any = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        error = {}
    kind = _KINDS.get(status, ApiUnavailable if response.is_server_error else RequestRefused)
    return kind(
        str(error.get("message") or f"the server answered {status} {response.reason_phrase}"),
        code=error.get("code"),
        param=error.get("param"),
        request_id=response.headers.get("x-request-id"),
        status=status,
        is_transient=status in _TRANSIENT and response.headers.get("x-should-retry") != "false",
        retry_after_s=_retry_after_s(response.headers),
    )


def _retry_after_s(headers: httpx2.Headers) -> float | None:
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        if value.isascii() and value.isdecimal():
            return float(value) * unit_s
    return None


def _json(response: httpx2.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None
