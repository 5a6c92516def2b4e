"""The shape of errors on Anthropic's routes: ``{"type": "error", "error": {"type", "message"}, "request_id"}``.

The inner object has ``code`` and ``param`` as well, as errors of all other routes. The shape is chosen by the path
alone, so errors of the middleware have it too. ``/v1/models`` is a route of two APIs: there the header
``anthropic-version`` decides. A refusal that Anthropic's clients act upon has its code in ``details.error_code``.
"""

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from headrace.producer_api.server.error_form import ErrorForm

_MESSAGES = "/v1/messages"
_MODELS = "/v1/models"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    410: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
# What a field that is not supported is called there. By this code a client that continues a conversation which the
# server should hold (``thread``) sends the whole conversation instead.
_DETAILS = {("unsupported_parameter", "thread"): {"error_code": "thread_unsupported_request"}}
ERROR_TYPES = ("invalid_request_error", *dict.fromkeys(_TYPES.values()), "api_error")


def is_anthropic(scope: Scope) -> bool:
    """Return True for a request of Anthropic's API."""
    path = scope["path"]
    if _is_under(path, _MODELS):
        return "anthropic-version" in Headers(scope=scope)
    return _is_under(path, _MESSAGES)


def _is_under(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def error_type(status: int) -> str:
    """Return Anthropic's error type for an HTTP status."""
    return _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def error_object(status: int, error: Mapping[str, Any], request_id: str | None) -> dict[str, Any]:
    """Return the body of an error. ``error``: the inner object of the other routes' body."""
    details = _DETAILS.get((str(error.get("code")), str(error.get("param"))))
    inner = {**error, "type": error_type(status), **({} if details is None else {"details": details})}
    return {"type": "error", "error": inner, "request_id": request_id}


PART = ErrorForm((_MESSAGES, _MODELS), is_anthropic, error_object, id_header="request-id")
