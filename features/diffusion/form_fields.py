"""Forms as OpenAI's clients send them: the fields of a JSON body as texts, and files."""

import re
from collections.abc import AsyncGenerator
from typing import Any, Final

import orjson
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from headrace.producer_api.http.requests import check_counts
from headrace.store.errors import InvalidRequest, TooLarge

FIELD_BYTES: Final = 64 << 10
_NESTED: Final = re.compile(r"(metadata|job)\[([^\[\]]{1,64})\]")
_NUMBERS: Final = re.compile(r"-?\d{1,12}(\.\d{1,12})?")
_TEXTS: Final = frozenset({"prompt", "negative_prompt", "user", "safety_identifier", "model", "metadata"})


async def read_body(request: Request, most_bytes: int) -> bytes:
    """Return the body. Raises TooLarge."""
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > most_bytes:
            raise TooLarge(f"the body is over {most_bytes} bytes, the most that is accepted")
    return bytes(body)


def json_fields(content: bytes) -> Any:
    """Return a body of JSON. Raises InvalidRequest."""
    check_counts(content)
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error.msg}") from None


async def read_form(headers: Headers, content: bytes, num_files: int) -> FormData:
    """Return the form of a body. The caller closes it. Raises InvalidRequest."""

    async def blocks() -> AsyncGenerator[bytes]:
        yield content

    parser = MultiPartParser(headers, blocks(), max_files=num_files, max_fields=40, max_part_size=FIELD_BYTES)
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, AttributeError) as error:
        said = getattr(error, "message", "it is no multipart form with its boundary")
        raise InvalidRequest(f"send multipart/form-data, or JSON: {said}") from error


def text_fields(form: FormData) -> dict[str, Any]:
    """Return the texts of a form as the fields of a JSON body."""
    found: dict[str, Any] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str) or not value:
            continue
        nested = _NESTED.fullmatch(name)
        if nested is not None:
            inner = int(value) if nested[1] == "job" and value.isdecimal() else value
            found.setdefault(nested[1], {})[nested[2]] = inner
        elif name in _TEXTS:
            found[name] = value
        else:
            found[name] = {"true": True, "false": False}.get(value, value)
            if isinstance(found[name], str) and _NUMBERS.fullmatch(value):
                found[name] = float(value) if "." in value else int(value)
    return found
