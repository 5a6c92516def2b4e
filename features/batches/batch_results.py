"""The results of a batch. The keeper writes them to files in pieces: answers to the output file, all else to another.

    {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error": null}

Each input line is in exactly one of the two files, in input order, also if it never became a job. ``read_ended`` reads
the same lines while the batch runs.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from headrace.features.batches import batch_steps
from headrace.features.batches.batch_input import RawLine, custom_id_of, first_bytes, read_lines, read_request
from headrace.features.batches.batch_steps import ResultFiles, StoredLine
from headrace.features.batches.batches import Batch
from headrace.features.files import files
from headrace.features.files.blob_storage import Blobs, BlobWriter
from headrace.producer_api.server.errors import body_of, internal_error, status_of
from headrace.producer_api.tasks.task_routes import ParsedRequest
from headrace.store.db.database import Database
from headrace.store.errors import HeadraceError, NotFound
from headrace.store.jobs import jobs
from headrace.store.jobs.jobs import Job
from headrace.store.schema.batch_states import BatchStatus
from headrace.store.schema.job_states import JobState
from headrace.store.settings import Settings

OK = 200
_LINES_PER_PIECE = 64
_BYTES_PER_PIECE = 1 << 20

BATCH_CANCELLED = "batch_cancelled"

_CANCELLED = {"code": BATCH_CANCELLED, "message": "the batch was cancelled before this request was done"}
_EXPIRED = {"code": "batch_expired", "message": "this request was not done within the completion window"}


def publish(db: Database, blobs: Blobs, settings: Settings, batch: Batch) -> Generator[None]:
    """Write both files and end the batch: a generator that pauses after each piece. Raises Unavailable."""
    results = _Writer(db, blobs)
    is_unfinished = batch.status is BatchStatus.VALIDATING
    try:
        if batch.num_total and batch.input_digest is not None:
            with blobs.open(batch.input_digest) as content:
                for lines in _pieces(read_lines(content, settings.max_body_bytes)):
                    for each in _joined(db, batch, lines):
                        is_unfinished |= each.is_unfinished
                        results.write(each, batch, settings)
                    yield
        for draft in results.drafts:
            files.keep_content(db, draft)
        batch_steps.end(
            db, batch, _end_of(batch, is_unfinished=is_unfinished), ResultFiles(results.output, results.errors)
        )
    finally:
        for draft in results.drafts:
            draft.drop()


def _end_of(batch: Batch, *, is_unfinished: bool) -> BatchStatus:
    if batch.status is BatchStatus.CANCELLING:
        return BatchStatus.CANCELLED
    # A line can expire at a shorter deadline of its own, before the batch's.
    is_late = batch.finalizing_at is None or batch.finalizing_at >= batch.expires_at
    return BatchStatus.EXPIRED if is_unfinished and is_late else BatchStatus.COMPLETED


@dataclass(frozen=True, slots=True)
class _Line:
    """An input line with its stored row and its job, where these exist."""

    raw: RawLine
    stored: StoredLine | None
    job: Job | None

    @property
    def is_under_way(self) -> bool:
        """True if the line has a job that has not ended."""
        return self.job is not None and not self.job.state.is_terminal

    @property
    def is_unfinished(self) -> bool:
        """True if the line was not processed in time."""
        if self.stored is None:
            return True
        return self.job is not None and self.job.state is JobState.EXPIRED


def _pieces(lines: Iterator[RawLine]) -> Iterator[list[RawLine]]:
    while piece := list(first_bytes(islice(lines, _LINES_PER_PIECE), _BYTES_PER_PIECE)):
        yield piece


def _joined(db: Database, batch: Batch, lines: Sequence[RawLine]) -> Iterable[_Line]:
    stored = {line.line: line for line in batch_steps.list_lines(db, batch, lines[0].number, lines[-1].number)}
    ids = [line.job_id for line in stored.values() if line.job_id is not None]
    found: dict[str | None, Job] = {job.id: job for job in jobs.get_many(db, batch.tenant_id, ids)}
    for raw in lines:
        known = stored.get(raw.number)
        yield _Line(raw, known, None if known is None else found.get(known.job_id))


class _Writer:
    """The two result files, each created with its first line."""

    def __init__(self, db: Database, blobs: Blobs) -> None:
        self._db = db
        self._blobs = blobs
        self.output: BlobWriter | None = None
        self.errors: BlobWriter | None = None

    @property
    def drafts(self) -> list[BlobWriter]:
        """The files that exist."""
        return [draft for draft in (self.output, self.errors) if draft is not None]

    def write(self, line: _Line, batch: Batch, settings: Settings) -> None:
        """Write the result of a line to its file."""
        is_answered, result = _result(self._db, line, batch, settings)
        self._draft(is_answered=is_answered).write(result)

    def _draft(self, *, is_answered: bool) -> BlobWriter:
        if is_answered:
            self.output = self.output or self._blobs.create()
            return self.output
        self.errors = self.errors or self._blobs.create()
        return self.errors


def _result(db: Database, line: _Line, batch: Batch, settings: Settings) -> tuple[bool, bytes]:
    """Return whether the line has an answer, and its result as a line of JSON."""
    result: dict[str, Any] = {
        "id": f"batch_req_{batch.id.removeprefix('batch_')}_{line.raw.number}",
        "custom_id": custom_id_of(line.raw),
        "response": None,
        "error": None,
    }
    is_answered = False
    if line.stored is not None and line.stored.refusal is not None:
        result["response"] = {"request_id": result["id"], **line.stored.refusal}
    elif line.job is None or line.job.state in (JobState.CANCELLED, JobState.EXPIRED):
        was_cancelled = batch.status is BatchStatus.CANCELLING or (
            line.job is not None and line.job.state is JobState.CANCELLED
        )
        result["error"] = _CANCELLED if was_cancelled else _EXPIRED
    else:
        status_code, body = _answer(db, line.raw, line.job, batch, settings)
        is_answered = status_code == OK
        result["response"] = {"status_code": status_code, "request_id": line.job.id, "body": body}
    return is_answered, orjson.dumps(result, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True, slots=True)
class Position:
    """The line of the input that is read next, and where it begins."""

    line: int = 1
    offset: int = 0


def read_ended(
    db: Database, blobs: Blobs, settings: Settings, batch: Batch, after: Position, limit: int
) -> tuple[list[bytes], Position]:
    """Return the results of at most ``limit`` lines from a position on, up to the first that has not ended.

    They are lines of JSON, as in the files of the batch's end. The position returned is where to go on. Raises NotFound
    if they were deleted, Unavailable.
    """
    results: list[bytes] = []
    if batch.input_digest is None or after.line >= batch.next_line:
        return results, after
    with blobs.open(batch.input_digest) as content:
        lines = read_lines(content, settings.max_body_bytes, number=after.line, offset=after.offset)
        for piece in _pieces(islice(lines, limit)):
            for each in _joined(db, batch, piece):
                if each.stored is None and each.raw.number < batch.next_line:
                    raise NotFound(f"the results of {batch.id[:80]} were deleted")
                if each.stored is None or each.is_under_way:
                    return results, after
                results.append(_result(db, each, batch, settings)[1])
                after = Position(each.raw.number + 1, each.raw.next_offset)
    return results, after


def _answer(db: Database, raw: RawLine, job: Job, batch: Batch, settings: Settings) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and body that the route would send."""
    try:
        wanted = read_request(raw, batch.url, settings.max_body_bytes).wanted
        read_answer = wanted.read_answer if isinstance(wanted, ParsedRequest) else None
        return OK, wanted.answer(job) if read_answer is None else read_answer(db, job)
    except HeadraceError as refusal:
        error = refusal
    except Exception as defect:  # noqa: BLE001 - one line must not prevent the end of the batch
        error = internal_error(defect)
    return status_of(error), body_of(error)
