"""Bodies that are packed, their bounds, and the number of their values."""

import gzip
from typing import Any

import pytest
from starlette.datastructures import Headers

from headrace.producer_api.http.requests import check_counts, decompress, has_gzip, plain_json
from headrace.producer_api.server.errors import UnsupportedEncoding
from headrace.store.errors import InvalidRequest, TooLarge
from tests.refusals import Naming, refusal

KIB = 1 << 10


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [(None, False), ("identity", False), (" Identity ", False), ("gzip", True), ("x-gzip", True), (" GZIP", True)],
)
def test_the_encodings_that_are_accepted(encoding: str | None, expected: bool) -> None:
    headers = Headers({} if encoding is None else {"content-encoding": encoding})
    assert has_gzip(headers, may=True) is expected


def test_an_encoding_that_is_not_accepted_is_named() -> None:
    long = "br-" + "x" * 40
    kind, message, *place = refusal(has_gzip, Headers({"content-encoding": long}), may=True)
    assert (kind, place) == (UnsupportedEncoding, ["unsupported_encoding", None])
    assert (repr(long[:20]) in message, long in message, "gzip" in message) == (True, False, True)
    message = refusal(has_gzip, Headers({"content-encoding": "gzip"}), may=False)[1]
    assert message.count("gzip") == 1, "it is what was sent, and no way out"


def test_a_packed_body_may_be_as_large_as_a_plain_one_or_as_its_ratio_allows() -> None:
    """The bound of a short body is 64 KiB, of a longer one 200 times its length, and never over that of the route."""
    small = gzip.compress(b" " * (64 * KIB))
    assert len(small) * 200 < 64 * KIB
    assert decompress(small, 1 << 20) == b" " * (64 * KIB)
    over = gzip.compress(b" " * (64 * KIB + 1))
    kind, message, *place = refusal(decompress, over, 1 << 20)
    assert (kind, place) == (TooLarge, ["request_too_large", None])
    assert (f"{64 * KIB} bytes" in message, f"{len(over)} bytes" in message) == (True, True)
    repeated = gzip.compress(b" " * 500_000)
    assert f" {200 * len(repeated)} bytes" in refusal(decompress, repeated, 1 << 20)[1]
    assert decompress(gzip.compress(b"x" * 100), 100) == b"x" * 100
    assert " 100 bytes" in refusal(decompress, gzip.compress(b"x" * 101), 100)[1]


def test_a_body_that_is_not_one_gzip_stream_is_told_so() -> None:
    packed, whole = gzip.compress(b"{}"), Naming("whole gzip")
    not_gzip = (InvalidRequest, Naming("`Content-Encoding`"), "invalid_value", None)
    assert refusal(decompress, b"{}", 100) == not_gzip
    for content in (packed[:-1], packed + b"x", b""):
        assert refusal(decompress, content, 100) == (InvalidRequest, whole, "invalid_value", None)


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
    named = Naming(f"{most + 1} {what}", str(most))
    assert refusal(check_counts, body(most + 1)) == (InvalidRequest, named, "invalid_value", None)
