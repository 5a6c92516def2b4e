"""Validates a batch's input in pieces: each line as its route would, and that custom ids are unique."""

from collections.abc import Generator
from hashlib import blake2b
from typing import Any

from headrace.features.batches import batch_steps
from headrace.features.batches.batch_input import MAX_ERRORS, LineRefused, RawLine, read_lines
from headrace.features.batches.batch_lines import LineReader
from headrace.features.batches.batches import Batch
from headrace.features.files.blob_storage import Blobs
from headrace.store.db.database import Database
from headrace.store.settings import Settings

MESSAGES_URL = "/v1/messages"
"""Anthropic's batches begin with whatever they have: a bad line is an error of that line, in the results."""

_LINES_PER_PIECE = 128
_BYTES_PER_PIECE = 1 << 20
_DIGEST_BYTES = 12


def validate(db: Database, blobs: Blobs, lines: LineReader, settings: Settings, batch: Batch) -> Generator[None]:
    """Validate all lines, then start or fail the batch: a generator that pauses after each piece.

    Raises Unavailable, and Forbidden while the tenant is disabled.
    """
    check = _InputValidator(batch, lines)
    num_lines = piece_at = 0
    if batch.input_digest is not None:
        with blobs.open(batch.input_digest) as content:
            for line in read_lines(content, settings.max_body_bytes):
                num_lines += 1
                if num_lines > settings.max_batch_lines:
                    check.add("too_many_lines", f"a batch has at most {settings.max_batch_lines} lines", line.number)
                if len(check.errors) >= MAX_ERRORS or num_lines > settings.max_batch_lines:
                    break
                check.look(line)
                if num_lines % _LINES_PER_PIECE == 0 or line.next_offset - piece_at >= _BYTES_PER_PIECE:
                    piece_at = line.next_offset
                    yield
    if not num_lines:
        check.add("empty_file", "the input file has no lines", None)
    if check.errors:
        batch_steps.fail(db, batch, check.errors)
    else:
        batch_steps.start(
            db, batch.tenant_id, batch.id, num_total=num_lines, model=check.model, model_versions=check.model_versions
        )


class _InputValidator:
    """State of the validation. Custom ids are kept as digests: a million take 100 MB."""

    def __init__(self, batch: Batch, lines: LineReader) -> None:
        self._batch = batch
        self._lines = lines
        self._owner = lines.owner(batch)
        self._seen: set[bytes] = set()
        self.errors: list[dict[str, Any]] = []
        self.model: str | None = None
        self.model_versions: dict[str, str] = {}

    def look(self, line: RawLine) -> None:
        """Validate one line."""
        if line.cannot_be_stored:
            return
        try:
            request, target = self._lines.read(self._batch, self._owner, line)
            pins = self._lines.pins_of(self._owner, request, target)
        except LineRefused as refused:
            if self._batch.url == MESSAGES_URL:
                return
            error = refused.at(line.number)
            self.errors.append(error | self._lines.policed_error(self._owner, line, refused.message, refused.param))
            return
        digest = blake2b(request.custom_id.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest()
        if digest in self._seen:
            self.add("duplicate_custom_id", "an earlier line has the same `custom_id`", line.number, "custom_id")
        self._seen.add(digest)
        self.model = self.model or target.model
        # The first line with a name decides for all: an alias may move while a long input is read.
        for name, version in pins.items():
            self.model_versions.setdefault(name, version)

    def add(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        """Add an error."""
        self.errors.append({"code": code, "message": message, "param": param, "line": line})
