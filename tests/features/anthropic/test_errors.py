"""The shape of errors on Anthropic's routes: its types by status, and the routes that have it."""

import json

import pytest

from headrace.features.anthropic.errors import ERROR_TYPES, error_type, is_anthropic
from headrace.producer_api.server.errors import respond
from headrace.store import errors as store


def test_anthropic_s_types_by_status() -> None:
    statuses = (400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 500, 503, 504, 502)
    assert {status: error_type(status) for status in statuses} == {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "invalid_request_error",
        409: "invalid_request_error",
        410: "not_found_error",
        413: "request_too_large",
        415: "invalid_request_error",
        422: "invalid_request_error",
        429: "rate_limit_error",
        500: "api_error",
        502: "api_error",
        503: "overloaded_error",
        504: "timeout_error",
    }
    assert sorted(ERROR_TYPES) == sorted({*map(error_type, statuses)})


@pytest.mark.parametrize(
    ("path", "has_header", "expected"),
    [
        ("/v1/messages", False, True),
        ("/v1/messages/batches", False, True),
        ("/v1/messagesx", False, False),
        ("/v1/models", False, False),
        ("/v1/models", True, True),
        ("/v1/models/tiny", True, True),
        ("/v1/modelsx", True, False),
        ("/v1/jobs", True, False),
    ],
)
def test_anthropic_s_shape_is_for_its_routes_alone(path: str, has_header: bool, expected: bool) -> None:
    headers = [(b"anthropic-version", b"2023-06-01")] if has_header else []
    scope = {"type": "http", "path": path, "headers": headers, "state": {"request_id": "req_1"}}
    assert is_anthropic(scope) is expected
    body = json.loads(respond(store.NotFound("m"), scope).body)
    inner = {"message": "m", "param": None, "code": "not_found"}
    if expected:
        inner["type"] = "not_found_error"
        assert body == {"type": "error", "error": inner, "request_id": "req_1"}
    else:
        assert body == {"error": inner | {"type": "invalid_request_error"}}
