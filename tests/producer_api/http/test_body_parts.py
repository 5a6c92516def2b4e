"""The parts of a request as they are read: packed bodies, counts of values, filters, paths, and the origin of a job."""

import gzip
from typing import Any

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.routing import Route

from producer_api.http.body_encoding import decompress, has_gzip, plain_json
from producer_api.http.metadata_filters import metadata_filters
from producer_api.http.paths import RouteTable, canonical
from producer_api.http.requests import (
    OriginHeaders,
    check_counts,
    read_origin_headers,
)
from producer_api.http.views import rounded, seconds
from producer_api.server.errors import UnsupportedEncoding
from producer_api.submission.cache_lookup import CacheWish
from store.errors import HeadraceError, InvalidRequest, TooLarge
from store.tenants.api_keys import Principal
from store.tracing.trace_context import TraceContext

KIB = 1 << 10


def said(call: Any, *arguments: Any, **named: Any) -> tuple[type[HeadraceError], str, str, str | None]:
    """Return the class, message, code and field of the error that a call raises."""
    with pytest.raises(HeadraceError) as caught:
        call(*arguments, **named)
    error = caught.value
    return type(error), error.message, error.code, error.param


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [(None, False), ("identity", False), (" Identity ", False), ("gzip", True), ("x-gzip", True), (" GZIP", True)],
)
def test_the_encodings_that_are_accepted(encoding: str | None, expected: bool) -> None:
    headers = Headers({} if encoding is None else {"content-encoding": encoding})
    assert has_gzip(headers, may=True) is expected


def test_an_encoding_that_is_not_accepted_is_named() -> None:
    long = "br-" + "x" * 40
    assert said(has_gzip, Headers({"content-encoding": long}), may=True) == (
        UnsupportedEncoding,
        f"a body encoded as {long[:20]!r} is not accepted: send it gzip or uncompressed",
        "unsupported_encoding",
        None,
    )
    message = "a body encoded as 'gzip' is not accepted: send it uncompressed"
    assert said(has_gzip, Headers({"content-encoding": "gzip"}), may=False)[1] == message


def test_a_packed_body_may_be_as_large_as_a_plain_one_or_as_its_ratio_allows() -> None:
    """The bound of a short body is 64 KiB, of a longer one 200 times its length, and never over that of the route."""
    small = gzip.compress(b" " * (64 * KIB))
    assert len(small) * 200 < 64 * KIB
    assert decompress(small, 1 << 20) == b" " * (64 * KIB)
    over = gzip.compress(b" " * (64 * KIB + 1))
    assert said(decompress, over, 1 << 20) == (
        TooLarge,
        f"the decompressed body is over {64 * KIB} bytes, the most that is accepted of {len(over)} bytes",
        "request_too_large",
        None,
    )
    repeated = gzip.compress(b" " * 500_000)
    assert said(decompress, repeated, 1 << 20)[1].startswith(f"the decompressed body is over {200 * len(repeated)} ")
    assert decompress(gzip.compress(b"x" * 100), 100) == b"x" * 100
    assert said(decompress, gzip.compress(b"x" * 101), 100)[1].startswith("the decompressed body is over 100 bytes")


def test_a_body_that_is_not_one_gzip_stream_is_told_so() -> None:
    packed, whole = gzip.compress(b"{}"), "the body is not one whole gzip stream: its end is missing, or more follows"
    not_gzip = (InvalidRequest, "the body is not valid gzip, which its `Content-Encoding` says", "invalid_value", None)
    assert said(decompress, b"{}", 100) == not_gzip
    for content in (packed[:-1], packed + b"x", b""):
        assert said(decompress, content, 100) == (InvalidRequest, whole, "invalid_value", None)


def test_a_body_goes_on_as_plain_json() -> None:
    kind, json = (b"content-type", b"application/vnd.x+json"), (b"content-type", b"application/json")
    other = (b"accept", b"*/*")
    assert plain_json([other, (b"content-encoding", b"gzip"), kind]) == [other, kind]
    assert plain_json([(b"content-encoding", b"gzip")]) == [json]


@pytest.mark.parametrize(
    ("most", "what", "body"),
    [
        (16_384, "lists and objects", lambda count: b"[" * (count // 2) + b"{" * (count - count // 2)),
        (16_384, "fields of objects", lambda count: b"{" + b'"a":1' * count + b"}"),
        (262_144, "values", lambda count: b"[1" + b",1" * (count - 1) + b"]"),
    ],
)
def test_a_body_has_as_many_values_as_the_limit(most: int, what: str, body: Any) -> None:
    check_counts(body(most))
    check_counts(body(most) + b'"[[::,,"')  # a text, whose signs do not count
    message = f"the JSON body has {most + 1} {what}, and {most} are accepted: send less at once"
    assert said(check_counts, body(most + 1)) == (InvalidRequest, message, "invalid_value", None)


def _asked(query: str) -> Request:
    return Request({"type": "http", "query_string": query.encode(), "headers": []})


def test_filters_by_metadata_are_told_from_other_parameters() -> None:
    longest = "k" * 64
    asked = _asked(f"metadata[{longest}]=a&metadata[b]=&limit=3")
    assert metadata_filters(asked, {"limit"}) == {longest: "a", "b": ""}
    for name in ("metadata", "metadata[]", f"metadata[{longest}x]", "xmetadata[a]", "metadata[a]x"):
        message = f"`{name[:64]}` is not a filter: use after, limit or metadata[key]"
        assert said(metadata_filters, _asked(f"{name}=1"), ["limit", "after"]) == (
            InvalidRequest,
            message,
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
    full = await origin_headers(idempotency_key="k", retry_count=" 2", project="p", cache=" USE")
    assert full == OriginHeaders("POST /v1/jobs/{id}", "key_1", "k", True, "p", CacheWish.USE, TRACE)
    for count in ("0", " 0 ", "", " "):
        assert not (await origin_headers(retry_count=count)).is_retry
    assert (await origin_headers(project="")).project is None


async def test_requests_are_equal_if_key_route_and_content_are() -> None:
    first = await origin_headers(idempotency_key="k", project="p", cache="bypass", retry_count="1")
    origin = first.origin([b"a", b"bc"], 3)
    digest = origin.fingerprint
    assert (origin.route, origin.idempotency_key, origin.is_retry, origin.num_bytes) == (first.route, "k", True, 3)
    assert (origin.project_id, origin.cache, origin.trace, len(digest)) == ("p", CacheWish.BYPASS, TRACE, 32)
    other = OriginHeaders("POST /v1/jobs/{id}", "key_1", "other", False, None, None, None)
    assert other.origin([b"a", b"bc"], 3).fingerprint == digest
    for content in ([b"ab", b"c"], [b"a", b"b"], [b"abc"]):
        assert other.origin(content, 3).fingerprint != digest
    for route, key in (("PUT /v1/jobs/{id}", "key_1"), ("POST /v1/jobs/{id}", "key_2")):
        elsewhere = OriginHeaders(route, key, "k", True, "p", CacheWish.BYPASS, TRACE)
        assert elsewhere.origin([b"a", b"bc"], 3).fingerprint != digest


def test_no_time_and_no_figure_are_null() -> None:
    assert (seconds(None), rounded(None), rounded(1.23456), rounded(0.0)) == (None, None, 1.235, 0.0)
