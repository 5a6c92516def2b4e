"""Reads and parses a batch's input file line by line, in bounded memory. Lines are numbered from 1.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {…}}

Blank lines are skipped but counted in the line numbers.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import orjson

from headrace.features.flows.pipeline_jobs import ParsedPipelineJob
from headrace.producer_api.http.requests import check_counts
from headrace.producer_api.tasks.registry import read_task
from headrace.producer_api.tasks.task_routes import ParsedRequest
from headrace.store.errors import HeadraceError, InvalidRequest
from headrace.store.json_text import has_nul

MAX_ERRORS = 100
"""Most errors reported for one input file."""

MAX_CUSTOM_ID_CHARS = 512


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line that is not blank, and the offset of the next one. ``text`` is None if the line is over the limit."""

    number: int
    text: bytes | None
    next_offset: int

    @property
    def cannot_be_stored(self) -> bool:
        """True if the line contains U+0000, raw or as a JSON escape. Only this line fails, not its batch."""
        return self.text is not None and (b"\0" in self.text or has_nul(self.text))

    @property
    def name(self) -> str:
        """Name in the database where the custom id cannot be stored."""
        return f"line_{self.number}"


@dataclass(frozen=True, slots=True)
class Request:
    """A valid line, parsed."""

    custom_id: str
    wanted: ParsedRequest | ParsedPipelineJob


class LineRefused(Exception):
    """A line is not a valid request of this batch."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param

    def at(self, line: int) -> dict[str, Any]:
        """Return the entry for the batch's ``errors``."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": line}


def read_lines(content: BinaryIO, most_bytes: int, *, number: int = 1, offset: int = 0) -> Iterator[RawLine]:
    """Yield the lines from ``offset``, where line ``number`` starts."""
    content.seek(offset)
    while text := content.readline(most_bytes + 1):
        size = len(text)
        is_long = size > most_bytes and not text.endswith(b"\n")
        while is_long and (rest := content.readline(1 << 20)):
            size += len(rest)
            if rest.endswith(b"\n"):
                break
        offset += size
        if is_long or not text.isspace():
            yield RawLine(number, None if is_long else text, offset)
        number += 1


def read_request(line: RawLine, url: str, most_bytes: int) -> Request:
    """Parse the line. Raises LineRefused, with the route's own error where the route would refuse the body."""
    fields = _fields(line, most_bytes)
    custom_id = fields.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARS:
        message = f"`custom_id` is required: a text of 1 to {MAX_CUSTOM_ID_CHARS} characters"
        raise LineRefused("missing_required_parameter", message, "custom_id")
    if fields.get("method") != "POST":
        raise LineRefused("invalid_method", "`method` must be POST", "method")
    if fields.get("url") != url:
        raise LineRefused("mismatched_url", f"`url` must be {url}, the batch's endpoint", "url")
    body = fields.get("body")
    if not isinstance(body, dict):
        raise LineRefused("missing_required_parameter", "`body` is required: a JSON object", "body")
    try:
        return Request(custom_id, read_task(url, body))
    except HeadraceError as error:
        raise LineRefused(error.code, error.message, None if error.param is None else f"body.{error.param}") from error


def _fields(line: RawLine, most_bytes: int) -> dict[str, Any]:
    if line.text is None:
        raise LineRefused("request_too_large", f"the line is over {most_bytes} bytes")
    if line.cannot_be_stored:
        raise LineRefused("invalid_value", "the line contains U+0000, which cannot be stored: remove it")
    try:
        check_counts(line.text)
        fields = orjson.loads(line.text)
    except InvalidRequest as error:
        raise LineRefused("invalid_json_line", error.message.replace("the JSON body", "the line", 1)) from None
    except orjson.JSONDecodeError as error:
        raise LineRefused("invalid_json_line", f"the line is not valid JSON: {error.msg}") from None
    if not isinstance(fields, dict):
        raise LineRefused("invalid_json_line", "the line must be a JSON object")
    return fields


def first_bytes(lines: Iterable[RawLine], most_bytes: int) -> Iterator[RawLine]:
    """Yield lines until their total size reaches ``most_bytes``; at least one."""
    num_bytes = 0
    for line in lines:
        yield line
        num_bytes += len(line.text or b"")
        if num_bytes >= most_bytes:
            return


def custom_id_of(line: RawLine) -> str:
    """Return the line's custom id, or the line's name if it has none."""
    custom_id = _find(line, "custom_id")
    return custom_id if isinstance(custom_id, str) else line.name


def model_of(line: RawLine) -> str:
    """Return the model that a line names, "" if it has no valid one."""
    model = _find(line, "body", "model")
    return model if isinstance(model, str) and "\0" not in model else ""


def _find(line: RawLine, *path: str) -> object:
    """Return the value at a JSON path of the line, None if there is none."""
    try:
        check_counts(line.text or b"")
        found = orjson.loads(line.text or b"")
        for step in path:
            found = found[step]
    except (InvalidRequest, orjson.JSONDecodeError, LookupError, TypeError):
        return None
    return found
