"""Streams a multipart form (RFC 7578): its fields are kept in memory, its file goes to a draft block by block.

Parses with python-multipart and enforces size limits. Beside the draft only one block of the file is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from headrace.store.errors import InvalidRequest, TooLarge

if TYPE_CHECKING:
    # Does not exist at run time.
    from python_multipart.multipart import MultipartCallbacks

BLOCK_BYTES = 1 << 20
_MOST_FIELD_BYTES = 64 << 10
_MOST_PARTS = 32
_MOST_HEADER_BYTES = 8 << 10


class Draft(Protocol):
    """What a file is written to, block by block."""

    num_bytes: int

    def write(self, data: bytes) -> None:
        """Append."""
        ...

    def drop(self) -> None:
        """Forget what was written."""
        ...


DraftT = TypeVar("DraftT", bound=Draft)


@dataclass(slots=True)
class FileForm(Generic[DraftT]):
    """A parsed form: the fields, the file name, and the content as a draft.

    A field whose name ends with ``[]`` may come several times: its values are joined by commas.
    """

    fields: dict[str, str]
    filename: str
    draft: DraftT


@dataclass(slots=True)
class _Part:
    """The part being parsed."""

    headers: dict[str, bytes] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    value: bytearray = field(default_factory=bytearray)


async def read_form(
    request: Request, create: Callable[[], DraftT], most_bytes: int, *, name: str = "file"
) -> FileForm[DraftT]:
    """Read the whole body. ``name``: the field with the file; ``create`` makes its draft, which the caller must drop.

    Raises InvalidRequest unless it is a multipart form with one file, TooLarge, Unavailable (the storage).
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not (boundary := options.get(b"boundary")):
        raise InvalidRequest(f"send multipart/form-data with the file in the field `{name}`")
    draft = await run_in_threadpool(create)
    try:
        return await _MultipartReader(draft, boundary, most_bytes, name).read(request)
    except BaseException as error:
        await run_in_threadpool(draft.drop)
        if isinstance(error, FormParserError):
            raise InvalidRequest(f"the multipart body does not parse: {error}") from error
        raise


class _MultipartReader(Generic[DraftT]):
    """Feeds the parser and collects fields and file content."""

    def __init__(self, draft: DraftT, boundary: bytes, most_bytes: int, name: str) -> None:
        self._draft = draft
        self._name = name
        self._most_bytes = most_bytes
        self._parser = MultipartParser(boundary, self._callbacks())
        self._part = _Part()
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._block = bytearray()
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._has_ended = False
        self._num_bytes = self._num_parts = 0

    async def read(self, request: Request) -> FileForm[DraftT]:
        try:
            async for chunk in request.stream():
                self._num_bytes += len(chunk)
                if self._num_bytes > self._most_bytes + _MOST_FIELD_BYTES:
                    raise self._too_large()
                self._parser.write(chunk)
                if len(self._block) >= BLOCK_BYTES:
                    await self._flush()
        except ClientDisconnect as error:
            raise InvalidRequest("the upload was cut off") from error
        if not self._has_ended:
            raise InvalidRequest("the multipart body is cut off: its last boundary is missing")
        await self._flush()
        if self._filename is None:
            raise InvalidRequest(f"`{self._name}` is required", param=self._name)
        if self._draft.num_bytes > self._most_bytes:
            raise self._too_large()
        return FileForm(self._fields, self._filename, self._draft)

    def _too_large(self) -> TooLarge:
        message = f"the file is over {self._most_bytes} bytes, the most that is accepted"
        return TooLarge(message, param=self._name)

    async def _flush(self) -> None:
        if self._block:
            await run_in_threadpool(self._draft.write, bytes(self._block))
            self._block.clear()

    def _callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_to(lambda: self._header_name, _MOST_HEADER_BYTES),
            "on_header_value": self._add_to(lambda: self._header_value, _MOST_HEADER_BYTES),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _add_to(self, target: Callable[[], bytearray], most: int) -> Callable[[bytes, int, int], None]:
        def add(data: bytes, start: int, end: int) -> None:
            found = target()
            found += data[start:end]
            if len(found) > most:
                raise InvalidRequest(f"a header or a field of the form is over {most} bytes")

        return add

    def _begin_part(self) -> None:
        self._part = _Part()
        self._num_parts += 1
        if self._num_parts > _MOST_PARTS:
            raise InvalidRequest(f"the form has more than {_MOST_PARTS} parts")

    def _end_header(self) -> None:
        self._part.headers[bytes(self._header_name).decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.headers.get("content-disposition", b""))
        self._part.name = options.get(b"name", b"").decode(errors="replace")
        filename = options.get(b"filename")
        if self._part.name == self._name:
            if self._filename is not None:
                raise InvalidRequest(f"one request uploads one `{self._name}`", param=self._name)
            self._filename = self._part.filename = (filename or b"file").decode(errors="replace")[:255]

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is not None:
            self._block += data[start:end]
        else:
            self._add_to(lambda: self._part.value, _MOST_FIELD_BYTES)(data, start, end)

    def _end_part(self) -> None:
        name = self._part.name
        if self._part.filename is None and name:
            value = self._part.value.decode(errors="replace")
            if name.endswith("[]") and name in self._fields:
                value = f"{self._fields[name]},{value}"
            self._fields[name] = value

    def _end(self) -> None:
        self._has_ended = True
