"""A content as an answer of HTTP: whole or a range of bytes, with its digest as the entity tag."""

import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from headrace.features.files.blob_storage import Blobs, read_range
from headrace.features.files.files import File

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
# Shown in a page as they are. Others, such as HTML and SVG, may run code in the name of this server: they are saved.
_SHOWN = re.compile(r"(image/(png|jpeg|webp|gif|avif|bmp)|audio/.*|video/.*|text/plain|application/pdf)")


@dataclass(frozen=True, slots=True)
class _Part:
    first: int
    last: int


async def content_answer(request: Request, blobs: Blobs, file: File, media_type: str, *, is_named: bool) -> Response:
    """Return a file's content, the range that the request asks for, or that it is unchanged (304).

    ``is_named``: tell the client the file's name. Raises Unavailable.
    """
    sha256 = file.digest.partition(".")[0]
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    headers["X-Content-Type-Options"] = "nosniff"
    if is_named:
        kind = "inline" if _SHOWN.fullmatch(media_type) else "attachment"
        headers["Content-Disposition"] = f"{kind}; filename*=UTF-8''{quote(file.filename, safe='')}"
        headers["Content-Security-Policy"] = "sandbox; default-src 'none'; style-src 'unsafe-inline'"
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    part = _asked(request, file.num_bytes, headers["ETag"])
    if part is None:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.num_bytes}"})
    is_whole = part == _Part(0, file.num_bytes - 1)
    if not is_whole:
        headers["Content-Range"] = f"bytes {part.first}-{part.last}/{file.num_bytes}"
    headers["Content-Length"] = str(part.last - part.first + 1)
    status = 200 if is_whole else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    blocks = read_range(blobs, file.digest, part.first, part.last + 1)
    # Read the first block before sending headers, so that a storage outage is an error, not an empty file.
    first = await run_in_threadpool(next, blocks, b"")
    return StreamingResponse(_content(first, blocks), status_code=status, media_type=media_type, headers=headers)


async def _content(first: bytes, blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in iterate_in_threadpool(blocks):
        yield block


def _matches(given: str | None, etag: str) -> bool:
    tags = [one.strip().removeprefix("W/") for one in (given or "").split(",")]
    return etag in tags or "*" in tags


def _asked(request: Request, num_bytes: int, etag: str) -> _Part | None:
    """Return the bytes that are asked for; None if there are none of them. A range that cannot be read is ignored."""
    whole = _Part(0, num_bytes - 1)
    found = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if found is None or found[0] == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return whole
    first, last = found[1], found[2]
    if not first:
        part = _Part(max(0, num_bytes - int(last)), num_bytes - 1)
    else:
        part = _Part(int(first), min(int(last) if last else num_bytes, num_bytes - 1))
    if first and last and int(last) < int(first):
        return whole
    return part if part.first <= part.last else None
