"""Errors as HTTP responses. No other file knows the HTTP status of an error.

Every error leaves as ``{"error": {"message", "type", "param", "code"}}``, or in the ``ErrorForm`` of its route's face.
Bodies, prompts and keys never get into a message or a log line: pydantic's ``input`` is dropped, and a stack trace is
logged without the values that its exception carries.
"""

import math
import re
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from headrace.assembly import parts
from headrace.producer_api.server.error_form import ErrorForm
from headrace.producer_api.server.misplaced_fields import object_of
from headrace.producer_api.server.other_protocols import instead_of
from headrace.store import errors as store
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.tasks.registry import TASK_TAG

_log = structlog.get_logger("headrace.producer_api")

# The official client gives up at once on a longer wait.
_LONGEST_RETRY_S = 120
_LOG_AGAIN_AFTER_S = 1.0
# A field's name is the caller's own text and may be as long as a body.
_LONGEST_PATH = 200


class SyncTimeout(HeadraceError):
    """The caller has waited for the answer as long as the server allows; the job goes on."""

    default_code = "sync_timeout"

    def __init__(self, message: str, *, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobUnanswered(HeadraceError):
    """The job ended without an answer while its caller waited. ``code`` is the job's error code."""

    def __init__(self, message: str, *, code: str, job_id: str) -> None:
        super().__init__(message, code=code)
        self.job_id = job_id


class Draining(store.Unavailable):
    """This process is shutting down. ``job_id``: the job that the caller waited for, which goes on."""

    default_code = "draining"

    def __init__(self, message: str, *, job_id: str | None = None) -> None:
        super().__init__(message)
        self.job_id = job_id


class BadHttp(store.InvalidRequest):
    """A connection sent bytes that are no HTTP request, or a head that is too long or too slow."""


class SlowBody(HeadraceError):
    """A request's body, or the next part of an upload, did not come in time."""

    default_code = "request_timeout"


class UnsupportedEncoding(HeadraceError):
    """A request's body is compressed in a way that is not accepted."""

    default_code = "unsupported_encoding"


class _Internal(HeadraceError):
    """A defect of the server. The log has its details under the request's id."""


@dataclass(frozen=True, slots=True)
class _HttpError:
    """The HTTP form of one kind of error: status, OpenAI's ``type``, and fixed headers."""

    status: int
    type: str
    headers: Mapping[str, str] = field(default_factory=dict)


_NO_RETRY = {"x-should-retry": "false"}

# Looked up along an error's class hierarchy, so the nearest class decides.
_TABLE: dict[type[HeadraceError], _HttpError] = {
    store.InvalidRequest: _HttpError(400, "invalid_request_error"),
    store.Unauthenticated: _HttpError(401, "authentication_error", {"WWW-Authenticate": 'Bearer realm="headrace"'}),
    store.Forbidden: _HttpError(403, "permission_error"),
    store.NotFound: _HttpError(404, "invalid_request_error"),
    store.Gone: _HttpError(410, "invalid_request_error"),
    store.Conflict: _HttpError(409, "conflict_error", _NO_RETRY),
    store.PreconditionFailed: _HttpError(412, "invalid_request_error", _NO_RETRY),
    store.TooLarge: _HttpError(413, "invalid_request_error", {"Connection": "close"}),
    UnsupportedEncoding: _HttpError(415, "invalid_request_error", {"Accept-Encoding": "gzip"}),
    store.IdempotencyKeyReused: _HttpError(422, "idempotency_error"),
    store.RateLimited: _HttpError(429, "rate_limit_error"),
    store.QuotaExceeded: _HttpError(429, "insufficient_quota", _NO_RETRY),
    store.Unavailable: _HttpError(503, "overloaded_error"),
    SyncTimeout: _HttpError(504, "timeout_error", _NO_RETRY),
    JobUnanswered: _HttpError(500, "server_error", _NO_RETRY),
    SlowBody: _HttpError(408, "timeout_error", {"Connection": "close"}),
    HeadraceError: _HttpError(500, "server_error"),
}
# BadHttp is raised before the request has a route.
_BAD_HTTP = {"headers_too_large": 431, "request_timeout": 408}

_WRONG_INPUT = _HttpError(400, "invalid_request_error", _NO_RETRY)
# These jobs ended because of their owner, not because of a failure of the server. Some input is first seen by a worker:
# what a step found, a tool returned, or a file has inside.
_UNANSWERED: dict[str, _HttpError] = {
    "cancelled": _HttpError(409, "conflict_error", _NO_RETRY),
    "deadline_exceeded": _HttpError(504, "timeout_error", _NO_RETRY),
    **dict.fromkeys(
        (
            "audio_truncated",
            "context_length_exceeded",
            "file_gone",
            "image_unavailable",
            "invalid_image",
            "invalid_value",
            "not_found",
            "policy_blocked_input",
            "policy_blocked_output",
        ),
        _WRONG_INPUT,
    ),
}

_HTTP: dict[int, tuple[type[HeadraceError], str]] = {
    404: (store.NotFound, "not_found"),
    405: (store.InvalidRequest, "method_not_allowed"),
    413: (store.TooLarge, "request_too_large"),
}


class ErrorDetail(BaseModel):
    """What went wrong and what to do about it."""

    message: str
    type: str
    param: str | None = None
    code: str


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail


def _documented() -> dict[int | str, dict[str, Any]]:
    """Return every status of the table with its types, for the OpenAPI document of each route."""
    types: dict[int, list[str]] = {}
    for row in sorted([*_TABLE.values(), *_UNANSWERED.values()], key=lambda row: row.status):
        if row.type not in (known := types.setdefault(row.status, [])):
            known.append(row.type)
    return {status: {"model": ErrorBody, "description": " or ".join(known)} for status, known in types.items()}


DOCUMENTED = _documented()


def _row(error: HeadraceError) -> _HttpError:
    if isinstance(error, JobUnanswered) and error.code in _UNANSWERED:
        return _UNANSWERED[error.code]
    return next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)


def status_of(error: HeadraceError) -> int:
    """Return the HTTP status that an error has."""
    return _BAD_HTTP[error.code] if isinstance(error, BadHttp) and error.code in _BAD_HTTP else _row(error).status


def body_of(error: HeadraceError) -> dict[str, Any]:
    """Return the error object of a response body or of a stream."""
    content = {"message": error.message, "type": _row(error).type, "param": error.param, "code": error.code}
    job_id = getattr(error, "job_id", None)
    return {"error": content if job_id is None else content | {"job_id": job_id}}


_FORMS = parts("errors", ErrorForm)


def form_of(scope: Scope) -> ErrorForm | None:
    """Return the form of errors that the request's face has, None for ``ErrorBody``."""
    path = scope["path"]
    return next((form for form in _FORMS if path.startswith(form.paths) and form.is_of(scope)), None)


def respond(
    error: HeadraceError, scope: Scope, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the response for an error. Errors of the server are logged. The code goes to the metrics."""
    row = _row(error)
    state = scope.setdefault("state", {})
    state["error_code"] = error.code
    if row.status >= 500 and not isinstance(error, _Internal):
        _log_once(error)
    status = status or row.status
    body = body_of(error)
    if (form := form_of(scope)) is not None:
        body = form.body(status, body["error"], state.get("request_id"))
    return Response(
        orjson.dumps(body),
        status_code=status,
        headers={
            **row.headers,
            **_retry(error),
            **_location(error),
            **getattr(error, "headers", {}),
            **(headers or {}),
        },
        media_type="application/json",
    )


def _retry(error: HeadraceError) -> dict[str, str]:
    if not isinstance(error, store.RateLimited | store.Unavailable) or isinstance(error, store.QuotaExceeded):
        return {}
    wait_s = min(max(error.retry_after_s, 0.001), _LONGEST_RETRY_S)
    return {"Retry-After": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}


def _location(error: HeadraceError) -> dict[str, str]:
    job_id = getattr(error, "job_id", None)
    return {} if job_id is None else {"Location": f"/v1/jobs/{job_id}", "X-Job-Id": job_id}


_logged_at: dict[str, float] = {}


def _log_once(error: HeadraceError) -> None:
    """Log an error of the server, at most once a second for each code."""
    now = time.monotonic()
    if now - _logged_at.get(error.code, -math.inf) >= _LOG_AGAIN_AFTER_S:
        _logged_at[error.code] = now
        _log.warning("request_failed", code=error.code, reason=error.message)


def internal_error(error: BaseException) -> HeadraceError:
    """Log the type and the place of a defect, never its values; return the error for the caller."""
    frames = traceback.extract_tb(error.__traceback__)
    where = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
    _log.error("internal_error", error=type(error).__name__, where=where)
    return _Internal("an error on our side; it is logged under this answer's x-request-id")


def from_http(request: Request, error: HTTPException) -> HeadraceError:
    """Return our error for an error of the framework, such as no such route or method."""
    kind, code = _HTTP.get(error.status_code, (InvalidRequest, "invalid_value"))
    path = request.url.path
    instead = instead_of(path)
    if code == "not_found":
        where = "; the routes are listed at /docs" if request.app.openapi_url else ""
        return kind(f"no such route: {request.method} {path}{where if instead is None else f'; {instead}'}", code=code)
    if code == "method_not_allowed":
        return kind(f"{request.method} is not allowed on {path}{'' if instead is None else f'; {instead}'}", code=code)
    return kind(str(error.detail), code=code)


def _allowed(request: Request) -> str:
    """Return all methods of the request's path; the framework names only those of the first route."""
    path = getattr(request.scope.get("route"), "path_format", "")
    return ", ".join(sorted(method.upper() for method in request.app.openapi()["paths"].get(path, ())))


def from_validation(found: Sequence[Mapping[str, Any]], *, inside: str | None = None) -> InvalidRequest:
    """Return the first wrong field of pydantic's errors as one sentence, with its path as ``param``.

    ``inside``: the name of the field that was checked; None if it was the whole body.
    """
    fields = _by_field(found if inside is None else [{**one, "loc": (inside, *one["loc"])} for one in found])
    misplaced = [errors for errors in fields.values() if object_of(errors[0]) is not None]
    first, *others = (misplaced or [*fields.values()])[0]
    if misplaced:  # what lacks them is no second mistake
        fields = {place: errors for place, errors in fields.items() if errors[0]["type"] != "missing"}
    path = _path_of(first)
    sentences = [_sentence(first, path), *(_complaint(other) for other in others if other["type"] != first["type"])]
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    code = "unsupported_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return InvalidRequest(", or ".join(dict.fromkeys(sentences)) + more, code=code, param=path or None)


def _by_field(found: Sequence[Mapping[str, Any]]) -> dict[tuple[str | int, ...], list[Mapping[str, Any]]]:
    """Return the errors by field. A field of several types has one error for each type that it is not.

    A list is wrong because of its items: its own error then says nothing more.
    """
    fields: dict[tuple[str | int, ...], list[Mapping[str, Any]]] = {}
    for error in found:
        fields.setdefault(_without_types(error["loc"]), []).append(error)
    inner = {place[:depth] for place in fields for depth in range(len(place))}
    return {place: errors for place, errors in fields.items() if place not in inner}


_PARAMETERS = frozenset({"query", "path", "header"})
_TYPE_NAMES = frozenset({"str", "constrained-str", "constrained-int", "int", "float", "bool", "none"})


def _without_types(location: Sequence[str | int]) -> tuple[str | int, ...]:
    """Return the location without pydantic's names for the types of a field, such as ``tuple[str, ...]``.

    The name of a query parameter may have brackets too: only a body's fields have several types.
    """
    if location and location[0] in _PARAMETERS:
        return tuple(location)
    return tuple(step for step in location if isinstance(step, int) or not (step in _TYPE_NAMES or "[" in step))


def _path_of(error: Mapping[str, Any]) -> str:
    match error["type"]:
        case "json_invalid":
            return ""  # its location is an offset, not a field
        case "task_unknown":
            return "task"
        case _:
            return field_path(_without_types(error["loc"]))


def _sentence(error: Mapping[str, Any], path: str) -> str:
    match error["type"]:
        case "json_invalid":
            return f"the body is not valid JSON: {error.get('ctx', {}).get('error', 'it does not parse')}"
        case "extra_forbidden" if (outer := object_of(error)) is not None:
            inner = f"{path.removesuffix(str(error['loc'][-1]))}{outer}.{error['loc'][-1]}"
            return f"`{path}` is a part of `{outer}`: send it as `{inner}`"
        case "extra_forbidden":
            return f"`{path}` is not a field that is known here: remove it or correct its name"
        case "missing":
            return f"`{path}` is required" if path else "a JSON body is required"
        case "model_attributes_type" | "dict_type" | "model_type" if not path:
            return "the body must be a JSON object"
    return f"`{path}`: {_complaint(error)}" if path else _complaint(error)


# Pydantic's words of Python: they say nothing of JSON, or have another name there.
_PYTHON = re.compile(
    r" or (object to extract fields from|instance of \w+)|, unable to interpret input| after validation"
)
_JSON_TYPES = (
    ("valid tuple", "valid array"),
    ("valid list", "valid array"),
    ("valid dictionary", "valid object"),
    ("Tuple should", "Array should"),
    ("List should", "Array should"),
    ("Dictionary should", "Object should"),
)


def _complaint(error: Mapping[str, Any]) -> str:
    message = str(error["msg"])
    if error["type"] == "value_error":
        return message.removeprefix("Value error, ")
    message = _PYTHON.sub("", message)
    for python, in_json in _JSON_TYPES:
        message = message.replace(python, in_json)
    return f"{message[:1].lower()}{message[1:]}"


def field_path(location: Sequence[str | int]) -> str:
    """Return for example ``input.messages[0].content`` for pydantic's tuple."""
    path = ""
    steps = location[1:] if location and location[0] in {"body", *_PARAMETERS} else location
    # The tag of the task is not a field.
    for step in steps[1:] if steps and str(steps[0]).startswith(TASK_TAG) else steps:
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    return path[:_LONGEST_PATH]


async def on_error(request: Request, error: Exception) -> Response:
    """FastAPI's handler for every error that a route raises."""
    match error:
        case HeadraceError():
            return respond(error, request.scope)
        case RequestValidationError():
            return respond(from_validation(error.errors()), request.scope)
        case HTTPException():
            allowed = _allowed(request) if error.status_code == 405 else ""
            headers = {"Allow": allowed} if allowed else error.headers
            return respond(from_http(request, error), request.scope, status=error.status_code, headers=headers)
        case _:
            return respond(internal_error(error), request.scope)
