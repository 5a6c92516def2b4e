"""Errors as answers: status, headers and body of each class, and the sentence of a wrong field."""

import json
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from headrace.producer_api.server.errors import (
    DOCUMENTED,
    BadHttp,
    Draining,
    JobUnanswered,
    SlowBody,
    SyncTimeout,
    UnsupportedEncoding,
    body_of,
    field_path,
    from_http,
    from_validation,
    respond,
    status_of,
)
from headrace.store import errors as store
from headrace.store.errors import HeadraceError
from tests.refusals import Naming

SCOPE = {"type": "http", "path": "/v1/jobs", "headers": []}
NEVER = {"x-should-retry": "false"}
SECOND = {"retry-after": "1", "retry-after-ms": "1000"}
OF_JOB = {"location": "/v1/jobs/job_1", "x-job-id": "job_1"}

ANSWERS: list[tuple[HeadraceError, int, str, dict[str, str]]] = [
    (store.InvalidRequest("m"), 400, "invalid_request_error", {}),
    (store.Unauthenticated("m"), 401, "authentication_error", {"www-authenticate": 'Bearer realm="headrace"'}),
    (store.Forbidden("m"), 403, "permission_error", {}),
    (store.NotFound("m"), 404, "invalid_request_error", {}),
    (SlowBody("m"), 408, "timeout_error", {"connection": "close"}),
    (store.Conflict("m"), 409, "conflict_error", NEVER),
    (store.Gone("m"), 410, "invalid_request_error", {}),
    (store.PreconditionFailed("m"), 412, "invalid_request_error", NEVER),
    (store.TooLarge("m"), 413, "invalid_request_error", {"connection": "close"}),
    (UnsupportedEncoding("m"), 415, "invalid_request_error", {"accept-encoding": "gzip"}),
    (store.IdempotencyKeyReused("m"), 422, "idempotency_error", {}),
    (
        store.RateLimited("m", retry_after_s=2.0001),
        429,
        "rate_limit_error",
        {"retry-after": "3", "retry-after-ms": "2001"},
    ),
    (store.RateLimited("m", retry_after_s=0), 429, "rate_limit_error", {"retry-after": "1", "retry-after-ms": "1"}),
    (store.QuotaExceeded("m"), 429, "insufficient_quota", NEVER),
    (store.Unavailable("m"), 503, "overloaded_error", SECOND),
    (store.NoWorker("m"), 503, "overloaded_error", {"retry-after": "10", "retry-after-ms": "10000"}),
    (Draining("m"), 503, "overloaded_error", SECOND),
    (Draining("m", job_id="job_1"), 503, "overloaded_error", SECOND | OF_JOB),
    (SyncTimeout("m", job_id="job_1"), 504, "timeout_error", NEVER | OF_JOB),
    (JobUnanswered("m", code="engine_error", job_id="job_1"), 500, "server_error", NEVER | OF_JOB),
    (JobUnanswered("m", code="cancelled", job_id="job_1"), 409, "conflict_error", NEVER | OF_JOB),
    (JobUnanswered("m", code="deadline_exceeded", job_id="job_1"), 504, "timeout_error", NEVER | OF_JOB),
    (JobUnanswered("m", code="invalid_image", job_id="job_1"), 400, "invalid_request_error", NEVER | OF_JOB),
    (HeadraceError("m"), 500, "server_error", {}),
]


@pytest.mark.parametrize(
    ("error", "status", "kind", "headers"), ANSWERS, ids=lambda value: getattr(value, "code", None)
)
def test_an_error_has_its_status_type_and_headers(
    error: HeadraceError, status: int, kind: str, headers: dict[str, str]
) -> None:
    scope: dict[str, Any] = {**SCOPE}
    answer = respond(error, scope)
    fixed = {"content-length": str(len(answer.body)), "content-type": "application/json"}
    assert (answer.status_code, status_of(error), dict(answer.headers)) == (status, status, headers | fixed)
    job = {"job_id": "job_1"} if "x-job-id" in headers else {}
    assert json.loads(answer.body) == {"error": {"message": "m", "type": kind, "param": None, "code": error.code} | job}
    assert scope["state"] == {"error_code": error.code}


def test_an_answer_may_have_other_headers_and_another_status() -> None:
    answer = respond(store.Conflict("m"), {**SCOPE}, status=405, headers={"Allow": "GET", "x-should-retry": "true"})
    assert (answer.status_code, answer.headers["allow"], answer.headers["x-should-retry"]) == (405, "GET", "true")


def test_the_document_has_each_status_with_its_types() -> None:
    assert {status: row["description"] for status, row in DOCUMENTED.items()} == {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "invalid_request_error",
        408: "timeout_error",
        409: "conflict_error",
        410: "invalid_request_error",
        412: "invalid_request_error",
        413: "invalid_request_error",
        415: "invalid_request_error",
        422: "idempotency_error",
        429: "rate_limit_error or insufficient_quota",
        500: "server_error",
        503: "overloaded_error",
        504: "timeout_error",
    }


def test_a_head_that_cannot_be_read_has_a_status_of_its_own() -> None:
    found = {code: status_of(BadHttp("m", code=code)) for code in ("headers_too_large", "request_timeout", None)}
    assert found == {"headers_too_large": 431, "request_timeout": 408, None: 400}
    assert status_of(store.InvalidRequest("m", code="headers_too_large")) == 400


def test_a_body_names_the_field_and_the_job() -> None:
    error = store.InvalidRequest("m", code="c", param="p")
    assert body_of(error) == {"error": {"message": "m", "type": "invalid_request_error", "param": "p", "code": "c"}}


def error(kind: str, *place: str | int, msg: str = "Input should be a valid string", **ctx: Any) -> dict[str, Any]:
    return {"type": kind, "loc": place, "msg": msg, **({"ctx": ctx} if ctx else {})}


@pytest.mark.parametrize(
    ("found", "message", "param", "code"),
    [
        ([error("string_type", "body", "a")], "`a`: input should be a valid string", "a", None),
        ([error("string_type", "body", "a", 0, "b")], "`a[0].b`: input should be a valid string", "a[0].b", None),
        ([error("string_type", "query", "limit[x]")], "`limit[x]`: input should be a valid string", "limit[x]", None),
        ([error("string_type", "header", "int")], "`int`: input should be a valid string", "int", None),
        ([error("missing", "body", "a")], "`a` is required", "a", None),
        ([error("missing", "body")], "required", None, None),
        ([error("model_attributes_type", "body")], "JSON object", None, None),
        ([error("dict_type", "body")], "JSON object", None, None),
        (
            [error("dict_type", "body", "a", msg="Input should be a valid dictionary")],
            "`a`: input should be a valid object",
            "a",
            None,
        ),
        (
            [error("extra_forbidden", "body", "a")],
            "`a`",
            "a",
            "unsupported_parameter",
        ),
        (
            [error("missing", "body", "task:generate", "input"), error("extra_forbidden", "task:generate", "messages")],
            "`input.messages`",
            "messages",
            "unsupported_parameter",
        ),
        (
            [error("extra_forbidden", "task:embed", "x"), error("extra_forbidden", "task:embed", "texts")],
            "`input.texts`",
            "texts",
            "unsupported_parameter",
        ),
        (
            [error("extra_forbidden", "body", "task:generate", "colour")],
            "`colour`",
            "colour",
            "unsupported_parameter",
        ),
        ([error("json_invalid", "body", 7, error="x")], "JSON: x", None, None),
        ([error("json_invalid", "body", 7)], "JSON: ", None, None),
        ([error("task_unknown", "body", msg="No such task")], "`task`: no such task", "task", None),
        ([error("value_error", "body", msg="Value error, Give one")], "Give one", None, None),
        ([error("value_error", "body", "a", msg="Value error, Give one")], "`a`: Give one", "a", None),
        (
            [
                error("string_type", "body", "a", "str"),
                error("int_type", "body", "a", "int", msg="Input should be an int"),
            ],
            "`a`: input should be a valid string, or input should be an int",
            "a",
            None,
        ),
        (
            [error("string_type", "body", "a", "str"), error("string_type", "body", "a", "tuple[str, ...]")],
            "`a`: input should be a valid string",
            "a",
            None,
        ),
        (
            [error("string_type", "body", name) for name in "abc"],
            "`a`: input should be a valid string (and 2 more)",
            "a",
            None,
        ),
        (
            [error("tuple_type", "body", "a"), error("string_type", "body", "a", 1)],
            "`a[1]`: input should be a valid string",
            "a[1]",
            None,
        ),
        (
            [error("x", "body", "a", msg="Tuple should have 1 item after validation, not a valid list")],
            "`a`: array should have 1 item, not a valid array",
            "a",
            None,
        ),
        ([error("x", "body", "a", msg="List should have 1 item")], "`a`: array should have 1 item", "a", None),
        ([error("x", "body", "a", msg="Dictionary should have 1 item")], "`a`: object should have 1 item", "a", None),
        (
            [error("x", "body", "a", msg="Input should be a valid dictionary or instance of Step")],
            "`a`: input should be a valid object",
            "a",
            None,
        ),
    ],
)
def test_a_wrong_field_is_named(found: Any, message: str, param: str | None, code: str | None) -> None:
    refusal = from_validation(found)
    assert (refusal.message, refusal.param, refusal.code) == (Naming(message), param, code or "invalid_value")


def test_a_path_of_a_field_is_as_in_javascript_and_not_endless() -> None:
    assert field_path(("body", "steps", 0, "input", "messages", 1)) == "steps[0].input.messages[1]"
    assert field_path(("steps", "body")) == "steps.body"
    assert field_path(("body",)) == field_path(()) == ""
    assert field_path(("body", "x" * 300)) == "x" * 200


class _App:
    openapi_url: str | None = None


def test_an_error_of_the_framework_says_where_the_routes_are() -> None:
    request = Request(SCOPE | {"method": "GET", "app": _App(), "query_string": b"", "server": ("x", 80)})
    codes = (404, 405, 413, 400)
    found = {status: from_http(request, HTTPException(status, "detail")) for status in codes}
    assert {status: (type(one), one.message, one.code) for status, one in found.items()} == {
        404: (store.NotFound, Naming("GET /v1/jobs"), "not_found"),
        405: (store.InvalidRequest, Naming("GET", "/v1/jobs"), "method_not_allowed"),
        413: (store.TooLarge, "detail", "request_too_large"),
        400: (store.InvalidRequest, "detail", "invalid_value"),
    }
    request.app.openapi_url = "/openapi.json"
    told = from_http(request, HTTPException(404)).message
    assert told == Naming("GET /v1/jobs", "/docs")
