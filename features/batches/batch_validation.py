"""Validates a batch's input in pieces: each line as its route would, and that custom ids are unique."""

from collections.abc import Generator, Iterator
from hashlib import blake2b
from heapq import merge
from itertools import pairwise
from tempfile import TemporaryFile
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
_DIGEST_BYTES, _LINE_BYTES = 12, 8
_RECORD_BYTES = _DIGEST_BYTES + _LINE_BYTES
# Custom ids in memory: a sorted run of them takes some 5 MB.
_RUN_RECORDS = 1 << 16
# Of a run while all are merged. A batch of 20 million lines has 306 runs.
_READ_RECORDS = 256
_COMPARED_PER_PIECE = 8192


def validate(db: Database, blobs: Blobs, lines: LineReader, settings: Settings, batch: Batch) -> Generator[None]:
    """Validate all lines, then start or fail the batch: a generator that pauses after each piece.

    Raises Unavailable, and Forbidden while the tenant is disabled.
    """
    with _CustomIds() as custom_ids:
        yield from _validate(db, blobs, _InputValidator(batch, lines, custom_ids), settings, batch)


def _validate(
    db: Database, blobs: Blobs, check: "_InputValidator", settings: Settings, batch: Batch
) -> Generator[None]:
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
    yield from check.look_for_repeated()
    if check.errors:
        batch_steps.fail(db, batch, check.errors)
    else:
        batch_steps.start(
            db, batch.tenant_id, batch.id, num_total=num_lines, model=check.model, model_versions=check.model_versions
        )


class _InputValidator:
    """State of the validation."""

    def __init__(self, batch: Batch, lines: LineReader, custom_ids: "_CustomIds") -> None:
        self._batch = batch
        self._lines = lines
        self._owner = lines.owner(batch)
        self._custom_ids = custom_ids
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
        self._custom_ids.add(request.custom_id, line.number)
        self.model = self.model or target.model
        # The first line with a name decides for all: an alias may move while a long input is read.
        for name, version in pins.items():
            self.model_versions.setdefault(name, version)

    def look_for_repeated(self) -> Generator[None]:
        """Add an error for each line with a custom id of an earlier one, in pieces, and sort the errors by line."""
        for number, line in enumerate(self._custom_ids.repeated()):
            if len(self.errors) >= MAX_ERRORS:
                break
            if line is not None:
                self.add("duplicate_custom_id", "an earlier line has the same `custom_id`", line, "custom_id")
            if (number + 1) % _COMPARED_PER_PIECE == 0:
                yield
        self.errors.sort(key=lambda error: error["line"] or 0)

    def add(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        """Add an error."""
        self.errors.append({"code": code, "message": message, "param": param, "line": line})


class _CustomIds:
    """Finds repeated custom ids in bounded memory: their digests lie in a file, in sorted runs that are merged."""

    def __init__(self) -> None:
        self._file = TemporaryFile()  # noqa: SIM115 - closed by the context
        self._run: list[bytes] = []
        self._num_runs = 0

    def __enter__(self) -> "_CustomIds":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, custom_id: str, line: int) -> None:
        """Note the custom id of a line."""
        digest = blake2b(custom_id.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).digest()
        self._run.append(digest + line.to_bytes(_LINE_BYTES))
        if len(self._run) == _RUN_RECORDS:
            self._run.sort()
            self._file.write(b"".join(self._run))
            self._run.clear()
            self._num_runs += 1

    def repeated(self) -> Iterator[int | None]:
        """Yield for each custom id the line if an earlier one has the same, else None."""
        runs = [self._read(number) for number in range(self._num_runs)]
        for earlier, later in pairwise(merge(*runs, sorted(self._run))):
            is_same = earlier[:_DIGEST_BYTES] == later[:_DIGEST_BYTES]
            yield int.from_bytes(later[_DIGEST_BYTES:]) if is_same else None

    def _read(self, run: int) -> Iterator[bytes]:
        run_bytes = _RUN_RECORDS * _RECORD_BYTES
        for at in range(run * run_bytes, (run + 1) * run_bytes, _READ_RECORDS * _RECORD_BYTES):
            self._file.seek(at)
            block = self._file.read(_READ_RECORDS * _RECORD_BYTES)
            yield from (block[at : at + _RECORD_BYTES] for at in range(0, len(block), _RECORD_BYTES))
