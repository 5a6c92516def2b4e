"""Compressed request bodies: gzip, with bounds on what comes out. Other encodings are refused."""

import zlib

from starlette.datastructures import Headers

from headrace.producer_api.server.errors import UnsupportedEncoding
from headrace.store.errors import InvalidRequest, TooLarge

_LEAST_BYTES = 64 << 10
_MOST_RATIO = 200
"""JSON of conversations shrinks to a fifth, the most repetitive one to a fiftieth."""

_GZIP = 16 + zlib.MAX_WBITS


def has_gzip(headers: Headers, *, may: bool) -> bool:
    """Return True for a body with gzip, False for a plain one. Raises UnsupportedEncoding.

    ``may``: gzip is accepted.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return False
    if may and encoding in ("gzip", "x-gzip"):
        return True
    how = "gzip or uncompressed" if may else "uncompressed"
    raise UnsupportedEncoding(f"a body encoded as {encoding[:20]!r} is not accepted: send it {how}")


def decompress(body: bytes, most_bytes: int) -> bytes:
    """Return the content of a gzip body. Raises InvalidRequest for what is not gzip, TooLarge over the bounds.

    No more than the bound is ever decompressed.
    """
    most = min(most_bytes, max(_LEAST_BYTES, _MOST_RATIO * len(body)))
    stream = zlib.decompressobj(wbits=_GZIP)
    try:
        content = stream.decompress(body, most + 1)
    except zlib.error:
        raise InvalidRequest("the body is not valid gzip, which its `Content-Encoding` says") from None
    if len(content) > most:
        raise TooLarge(f"the decompressed body is over {most} bytes, the most that is accepted of {len(body)} bytes")
    if not stream.eof or stream.unused_data:
        raise InvalidRequest("the body is not one whole gzip stream: its end is missing, or more follows")
    return content


def plain_json(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers as those of a plain body. A body without a type is JSON."""
    kept = [(name, value) for name, value in headers if name != b"content-encoding"]
    if not any(name == b"content-type" for name, _ in kept):
        kept.append((b"content-type", b"application/json"))
    return kept
