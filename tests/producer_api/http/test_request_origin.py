"""Filters and paths of requests, the headers that say where they came from, and which requests are equal."""

import pytest
from starlette.requests import Request
from starlette.routing import Route

from headrace.producer_api.http.metadata_filters import metadata_filters
from headrace.producer_api.http.requests import OriginHeaders, RouteTable, canonical, read_origin_headers
from headrace.producer_api.http.views import rounded, seconds
from headrace.store.errors import InvalidRequest
from headrace.store.tenants.api_keys import Principal
from headrace.store.tracing.tracing import TraceContext
from tests.refusals import Naming, refusal


def _asked(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_filters_by_metadata_are_told_from_other_parameters() -> None:
    longest = "k" * 64
    asked = _asked(f"metadata[{longest}]=a&metadata[b]=&limit=3")
    assert metadata_filters(asked, {"limit"}) == {longest: "a", "b": ""}
    for name in ("metadata", "metadata[]", f"metadata[{longest}x]", "xmetadata[a]", "metadata[a]x"):
        assert refusal(metadata_filters, _asked(f"{name}=1"), ["limit", "after"]) == (
            InvalidRequest,
            Naming("after, limit or metadata[key]"),
            "unsupported_parameter",
            name[:64],
        )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/jobs", "/v1/jobs"),
        ("/v1/jobs/", "/v1/jobs"),
        ("/v1/jobs//", "/v1/jobs/"),
        ("/v1/", "/v1"),
        ("/models", "/v1/models"),
        ("/models/", "/v1/models"),
        ("/models/a/b", "/v1/models/a/b"),
        ("/tokenize", "/v1/tokenize"),
        ("/detokenize/", "/v1/detokenize"),
        ("/rerank", "/v1/rerank"),
        ("/v2/rerank", "/v1/rerank"),
        ("/v2/rerank/", "/v1/rerank"),
        ("/v2/embed", "/v2/embed"),
        ("/modelsx", "/modelsx"),
        ("/tokenize/x", "/tokenize/x"),
        ("/jobs", "/jobs"),
        ("/docs/", "/docs/"),
        ("/v1", "/v1"),
        ("/v10/jobs/", "/v10/jobs/"),
    ],
)
def test_a_path_has_one_spelling(path: str, expected: str) -> None:
    assert canonical(path) == expected


def test_a_route_takes_its_path_with_its_method() -> None:
    def nothing(_: Request) -> None: ...

    table = RouteTable([Route("/a", nothing, methods=["POST"]), Route("/b/{id}", nothing, methods=["PUT"])])
    asked = [("POST", "/a"), ("PUT", "/b/1"), ("PUT", "/a"), ("POST", "/b/1"), ("PUT", "/b"), ("POST", "/c")]
    found = [table.takes({"type": "http", "method": method, "path": path}) for method, path in asked]
    assert found == [True, True, False, False, False, False]


PRINCIPAL = Principal("tenant", "key_1", frozenset())
TRACE = TraceContext("1" * 32, "2" * 16, True)


async def origin_headers(**headers: str | None) -> OriginHeaders:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/jobs",
        "headers": [],
        "route": Route("/v1/jobs/{id}", lambda _: None),
        "state": {"principal": PRINCIPAL, "trace": TRACE},
    }
    given = dict.fromkeys(("idempotency_key", "retry_count", "project", "cache")) | headers
    return await read_origin_headers(Request(scope), **given)


async def test_the_headers_of_a_submission_say_where_it_came_from() -> None:
    plain = await origin_headers()
    assert plain == OriginHeaders("POST /v1/jobs/{id}", "key_1", None, False, None, None, TRACE)
    full = await origin_headers(idempotency_key="k", retry_count=" 2", project="p", cache="use")
    assert full == OriginHeaders("POST /v1/jobs/{id}", "key_1", "k", True, "p", "use", TRACE)
    for count in ("0", " 0 ", "", " "):
        assert not (await origin_headers(retry_count=count)).is_retry
    assert (await origin_headers(project="")).project is None


async def test_requests_are_equal_if_key_route_and_content_are() -> None:
    first = await origin_headers(idempotency_key="k", project="p", cache="bypass", retry_count="1")
    origin = first.origin([b"a", b"bc"], 3)
    digest = origin.fingerprint
    assert (origin.route, origin.idempotency_key, origin.is_retry, origin.num_bytes) == (first.route, "k", True, 3)
    assert (origin.project_id, origin.cache, origin.trace, len(digest)) == ("p", "bypass", TRACE, 32)
    other = OriginHeaders("POST /v1/jobs/{id}", "key_1", "other", False, None, None, None)
    assert other.origin([b"a", b"bc"], 3).fingerprint == digest
    for content in ([b"ab", b"c"], [b"a", b"b"], [b"abc"]):
        assert other.origin(content, 3).fingerprint != digest
    for route, key in (("PUT /v1/jobs/{id}", "key_1"), ("POST /v1/jobs/{id}", "key_2")):
        elsewhere = OriginHeaders(route, key, "k", True, "p", "bypass", TRACE)
        assert elsewhere.origin([b"a", b"bc"], 3).fingerprint != digest


def test_no_time_and_no_figure_are_null() -> None:
    assert (seconds(None), rounded(None), rounded(1.23456), rounded(0.0)) == (None, None, 1.235, 0.0)
