"""Forms as OpenAI's clients send them: the fields of a JSON body as texts, and files."""

import re
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from headrace.producer_api.http.requests import check_counts
from headrace.producer_api.server.errors import from_validation
from headrace.store.errors import InvalidRequest, TooLarge

BodyT = TypeVar("BodyT", bound=BaseModel)
Files: TypeAlias = list[tuple[str, UploadFile]]

FIELD_BYTES: Final = 64 << 10
_NESTED: Final = re.compile(r"(metadata|job)\[([^\[\]]{1,64})\]")
_NUMBERS: Final = re.compile(r"-?\d{1,12}(\.\d{1,12})?")
_TEXTS: Final = frozenset({"prompt", "negative_prompt", "user", "safety_identifier", "model", "metadata"})


@asynccontextmanager
async def read_fields(request: Request, most_bytes: int, num_files: int) -> AsyncGenerator[tuple[Any, bytes, Files]]:
    """Yield the fields of a body, JSON or a form, its bytes, and the files of a form by their fields.

    Raises TooLarge, InvalidRequest.
    """
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > most_bytes:
            raise TooLarge(f"the body is over {most_bytes} bytes, the most that is accepted")
    content = bytes(body)
    if request.headers.get("content-type", "").startswith("application/json"):
        check_counts(content)
        try:
            fields = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"the body is not valid JSON: {error.msg}") from None
        yield fields, content, []
        return
    form = await _read_form(request.headers, content, num_files)
    try:
        files = [(name, value) for name, value in form.multi_items() if isinstance(value, UploadFile)]
        yield _text_fields(form), content, files
    finally:
        await form.close()


def validated(kind: type[BodyT], fields: Any) -> BodyT:
    """Return fields as a body. Raises InvalidRequest."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise from_validation(error.errors(include_input=False)) from error


async def _read_form(headers: Headers, content: bytes, num_files: int) -> FormData:
    async def blocks() -> AsyncGenerator[bytes]:
        yield content

    parser = MultiPartParser(headers, blocks(), max_files=num_files, max_fields=40, max_part_size=FIELD_BYTES)
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, AttributeError) as error:
        said = getattr(error, "message", "it is no multipart form with its boundary")
        raise InvalidRequest(f"send multipart/form-data, or JSON: {said}") from error


def _text_fields(form: FormData) -> dict[str, Any]:
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
